"""The performance lab: scenarios in, measured phases, verdicts and a report out.

Layers: below `t2s.cli`; never imports `t2s.tunnel`. What users need of it is in `t2s` itself: `load_scenarios`,
`run_scenarios`, `Scenario`, `ScenarioFile`, `Results`.
"""
