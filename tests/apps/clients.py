"""Four clients that send 10,000 requests to port 8000 of a host, and the set of statuses that were answered.

A container runs it from its text, so it needs the standard library only.
"""

import concurrent.futures
import http.client
import sys

CLIENTS = 4
REQUESTS_EACH = 2500


def ask(host: str) -> set[int]:
    connection = http.client.HTTPConnection(host, 8000, timeout=30)
    statuses = set()
    for number in range(REQUESTS_EACH):
        connection.request("GET", f"/greetings/guest-{number}")
        answer = connection.getresponse()
        answer.read()
        statuses.add(answer.status)
    return statuses


def main(host: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        print(sorted(set().union(*pool.map(ask, [host] * CLIENTS))))


if __name__ == "__main__":
    main(*sys.argv[1:])
