"""Print the status of a guarded request to this machine's admin port, with the token that is the argument.

A container runs it from its text, so it needs the standard library only.
"""

import http.client
import sys


def main(token: str) -> None:
    client = http.client.HTTPConnection("127.0.0.1", 8001)
    client.request("GET", "/-/requests", headers={"Authorization": f"Bearer {token}"})
    print(client.getresponse().status)


if __name__ == "__main__":
    main(*sys.argv[1:])
