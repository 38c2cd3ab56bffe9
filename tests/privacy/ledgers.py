"""Entries and bookings for the tests of ledgers."""

from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import Budget, Entry, Ledger

SITE = "this site's privfedtalk.yaml"


def entry(round_=1, sigma=4.0, job="job-1", nonce="n"):
    return Entry(job, "adapter", round_, nonce, Release(sigma, "coarse"), 0.1, 1e-5)


def site_budget(epsilon_max, delta=1e-5):
    return Budget(epsilon_max, delta, SITE)


def book(state, count, *budgets):
    for i in range(count):
        Ledger(state).reserve(entry(i), *budgets)
