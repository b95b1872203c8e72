"""What a run's page says in one sentence."""

from prospect.cluster.record import describe


def test_data_steps_and_scores() -> None:
    train = {"videos": 1420, "clips": 3210, "tokens": 5}
    manifest = {"datasets": {"holoassist": {"train": train, "validation": train}, "wtag": {"validation": train}}}
    summary = {
        "step": 450, "model_step": 400, "first_loss": 2.314, "last_loss": 0.4,
        "validation": {"loss": 0.51, "state_accuracy": 0.9342, "speak_precision": 0.1},
    }  # fmt: skip
    assert describe(manifest, summary) == (
        "1,420 videos of holoassist (3,210 clips); 450 steps, loss 2.31 to 0.40; weights of step 400; "
        "on validation loss 0.510, state accuracy 0.934."
    )
    assert describe(manifest, {**summary, "validation": {}}).endswith("weights of step 400.")
