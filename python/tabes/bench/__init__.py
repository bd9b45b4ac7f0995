"""Decoders compared at equal cost: ``tabes bench pareto``.

A *plan* (plan.json) says which tasks, models, policies and settings; a *cell* is one task, split,
setting and seed. `measure` runs a slice of a cell and keeps what every example came to and cost;
`pool` does so in two processes and appends to a file from which a stopped run goes on; `choice`
picks hyper-parameters on the tune split; `analysis` compares outcomes of the test split, example by
example, at equal cost; `report`, `figures`, `command` and `run` are what a user sees.
"""
