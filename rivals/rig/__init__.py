"""The measuring rig: tunnels beside a client without any, through one SOCKS5 server, in two network namespaces."""
