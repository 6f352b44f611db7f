"""What runs on a host, as root, to verify its receipts: standard library only, Python 3.9 and later.

`provision/drift/bundle.py` packs it with the roles' modules; on the host it has these same names.
"""
