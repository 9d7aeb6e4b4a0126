"""The tunnel's Python side: settings, routes, namespaces, metrics, and the classes around the compiled tunnel.

Layers: below `t2s.cli`; never imports `t2s.lab`, polars or pydantic. What users need of it is in `t2s` itself:
`Tunnel`, `TunnelConfig`, `Proxy`.
"""
