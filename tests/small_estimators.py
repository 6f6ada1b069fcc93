"""Options that make the estimators quick."""

TINY = {
    "hidden": (4,),
    "scheme": "none",
    "values": "zero",
    "method": "fit",
    "replicas": 2,
    "num_steps": 20,
    "num_samples": 50,
    "random_state": 0,
    "progress": False,
}
