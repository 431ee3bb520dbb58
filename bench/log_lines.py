"""Log lines of a small web shop: what its servers write on good days, made from a seed, and on bad.

A line is what follows the clock in a system's log: host, program, message. Most lines are of a few
kinds; some kinds are rare, and still nothing is wrong.
"""

import random
import re

# How often, and a form. In brackets: a number between two, one of several, or a name from below.
_FORMS = """
240 <web> nginx: <ip> GET <page> <status> <200-60000> <seconds> "<agent>"
30 <web> nginx: <ip> POST </cart|/checkout|/login> <200|302> <200-900> <seconds> "<agent>"
30 <web> shop-api[<800-900>]: INFO order <100000-999999> placed items=<1-6> total=<9.00-900.00>
25 <web> shop-api[<800-900>]: INFO order <100000-999999> paid provider=<stripe|paypal|invoice>
15 <web> shop-api[<800-900>]: INFO order <100000-999999> shipped carrier=<dhl|ups|post>
40 <web> shop-api[<800-900>]: INFO cart <hex> updated items=<1-9>
25 <web> shop-api[<800-900>]: INFO cache miss key=product:<1-900> loaded in <2-80> ms
50 work1 shop-worker[<300-340>]: job <job> id=<hex> done in <ms> ms
30 work1 shop-worker[<300-340>]: job <job> id=<hex> queued, <0-40> waiting
5 work1 shop-worker[<300-340>]: job <job> id=<hex> retry <1-4> in <1|2|4|8> s: timeout
30 db1 postgres[<pid>]: LOG:  duration: <ms>.<100-999> ms  statement: SELECT * FROM <table> <where>
15 db1 postgres[<pid>]: LOG:  duration: <ms>.<100-999> ms  statement: UPDATE <table> <set> <where>
5 db1 postgres[<pid>]: LOG:  automatic vacuum of table "shop.public.<table>": <90-9000> pages remain
5 db1 postgres[<pid>]: LOG:  checkpoint complete: wrote <10-900> buffers; sync=<0.001-0.200> s
12 <host> sshd[<pid>]: Accepted publickey for <user> from <inner> port <32768-60999> ssh2
12 <host> sshd[<pid>]: pam_unix(sshd:session): session opened for user <user>(uid=<1000-1006>)
12 <host> sshd[<pid>]: Received disconnect from <inner> port <32768-60999>:11: disconnected by user
3 <host> sshd[<pid>]: Failed password for <user> from <inner> port <32768-60999> ssh2
8 <host> systemd[1]: Started <timer>.service, took <20-4000> ms.
8 <host> systemd[1]: <unit>.service: Consumed <1.000-90.000>s CPU time.
8 <host> CRON[<pid>]: (root) CMD (/usr/lib/<timer>/run)
3 <web> kernel: [<10000.000000-9000000.000000>] TCP: Possible SYN flooding on port <80|443>.
1 <host> dhclient[<400-900>]: bound to <inner> -- renewal in <10000-90000> seconds.
1 <host> chronyd[<400-900>]: Selected source <ip>
1 work1 backup[<pid>]: wrote <100-999> GiB in <9-60> min, <1-9> snapshots kept
1 <host> sudo: <user> : TTY=pts/<0-4> ; USER=root ; COMMAND=/usr/bin/systemctl restart <unit>
1 <web> certbot[<pid>]: certificate renewed, valid for <80-91> days
"""
_NAMES = {
    "web": "<web1|web2|web3>",
    "host": "<web1|web2|web3|db1|work1>",
    "pid": "<1000-32000>",
    "ip": "<10|84|91|139|178|203>.<0-255>.<0-255>.<0-255>",
    "inner": "10.0.<0-3>.<2-254>",
    "page": "</|/cart|/checkout|/login|/search?q=<word>|/product/<word>-<1-900>|/app.<hex>.js>",
    "word": "<lamp|chair|desk|shelf|rug|mirror|vase|clock|sofa|stool>",
    "status": "<200|200|200|200|200|200|200|304|304|302|404>",
    "seconds": "<0.004-0.090|0.004-0.090|0.090-0.900>",
    "agent": "<Firefox/132.0|Chrome/130.0|Safari/17.6|curl/8.9|Googlebot/2.1|okhttp/4.12>",
    "ms": "<5-90|5-90|90-900>",
    "job": "<send_mail|resize_image|sync_stock|make_invoice|index_product>",
    "table": "<orders|items|customers|sessions|prices|stock>",
    "set": "SET state = <1-6>",
    "where": "WHERE id = <1-99999>",
    "user": "<deploy|backup|anna|tom|mei|jonas>",
    "timer": "<logrotate|fstrim|apt-daily|certbot|backup>",
    "unit": "<nginx|shop-api|shop-worker|postgresql|redis-server|backup>",
}
_INNERMOST = re.compile(r"<([^<>]*)>")
_RANGE = re.compile(r"(\d+)(?:\.(\d+))?-(\d+)(?:\.\d+)?")


def good_lines(count: int, seed: int) -> list[str]:
    """So many different lines, in random order."""
    rng = random.Random(seed)
    pairs = [line.split(" ", 1) for line in _FORMS.strip().splitlines()]
    weights, forms = [int(weight) for weight, _ in pairs], [form for _, form in pairs]
    found: dict[str, None] = {}
    while len(found) < count:
        found[_filled(rng.choices(forms, weights)[0], rng)] = None
    return list(found)


def _filled(form: str, rng: random.Random) -> str:
    """A form without brackets; the innermost ones are filled first."""
    while _INNERMOST.search(form):
        form = _INNERMOST.sub(lambda match: _choice(match[1], rng), form)
    return form


def _choice(given: str, rng: random.Random) -> str:
    if given == "hex":
        return f"{rng.getrandbits(32):08x}"
    if given in _NAMES:
        return _NAMES[given]
    one = rng.choice(given.split("|"))
    bounds = _RANGE.fullmatch(one)
    if bounds is None:
        return one
    if bounds[2] is None:
        return str(rng.randint(int(bounds[1]), int(bounds[3])))
    low, high = map(float, one.split("-"))
    return f"{rng.uniform(low, high):.{len(bounds[2])}f}"


# What a person would want to see, by what is wrong.
ANOMALIES = {
    "attack": """
web2 nginx: 45.155.205.233 GET /search?q=%27%20UNION%20SELECT%20password%20FROM%20users-- 200 5120
web1 nginx: 185.220.101.4 GET /../../../etc/passwd 404 162 0.001 "python-requests/2.31"
web3 nginx: 94.102.61.7 POST /wp-login.php 404 153 0.002 "Go-http-client/1.1"
db1 sshd[28114]: Accepted password for root from 185.220.101.4 port 41022 ssh2
web1 sudo: www-data : TTY=unknown ; PWD=/tmp ; USER=root ; COMMAND=/bin/sh -c curl
""",
    "failure": """
web1 shop-api[812]: ERROR unhandled exception: KeyError('price') in views.py line 88
db1 postgres[2110]: PANIC:  could not write to file "pg_wal/xlogtemp.2110": No space left
web2 kernel: [812345.118231] Out of memory: Killed process 811 (shop-api) total-vm:9120332kB
work1 kernel: [99120.551902] blk_update_request: I/O error, dev sda, sector 48812344
web3 nginx: *8812 connect() failed (111: Connection refused) while connecting to upstream
work1 backup[20114]: FATAL: repository is locked by pid 812, giving up
db1 postgres[2251]: ERROR:  deadlock detected, process 2251 waits for ShareLock
""",
    "broken line": """
web1 nginx: 84.12.9.201 GET /product/la 200 51web2 nginx: 91.8.44.3 GET /cart 200 812 0.0
work1 shop-worker[311]: job \x1b[31msend_mail\x1b[0m id=00000000 done in -1 ms
web2 shop-api[841]: INFO order None placed items=0 total=nan
""",
    "odd value": """
web1 nginx: 10.0.3.17 GET /product/lamp-12 200 2048 29.997 "Firefox/132.0"
web3 shop-api[833]: INFO order 412345 placed items=4800 total=99999.00
web2 nginx: 203.4.5.6 GET /checkout 500 312 0.052 "Chrome/130.0"
db1 postgres[2044]: LOG:  duration: 48211.904 ms  statement: SELECT * FROM orders WHERE id = 7
""",
}


def wrong_lines() -> list[tuple[str, str]]:
    """What is wrong, and the line."""
    return [(kind, x) for kind, lines in ANOMALIES.items() for x in lines.strip().split("\n")]
