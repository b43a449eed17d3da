"""What Ray's control plane says of a replica that ended, told apart by its own messages."""

import pytest
from ray.core.generated.common_pb2 import ActorDeathCause, ActorDiedErrorContext, OomContext

from serve.dispatcher.pool import fate_of


@pytest.mark.parametrize(
    ("reason", "died"),
    [("WORKER_DIED", True), ("NODE_DIED", False), ("RAY_KILL", False), ("OUT_OF_SCOPE", False), ("UNSPECIFIED", False)],
)
def test_only_a_process_that_ended_by_itself_has_died(reason, died):
    message = "Worker exit type: SYSTEM_ERROR\n  Some common causes include: (1) advice"
    context = ActorDiedErrorContext(error_message=message, reason=ActorDiedErrorContext.Reason.Value(reason))
    fate = fate_of(ActorDeathCause(actor_died_error_context=context))
    assert (fate.died, fate.detail) == (died, "Worker exit type: SYSTEM_ERROR")


def test_a_process_that_the_host_ran_out_of_memory_for_has_died():
    fate = fate_of(ActorDeathCause(oom_context=OomContext(error_message="97 % used")))
    assert fate.died
    assert "97 % used" in fate.detail


def test_a_death_without_a_cause_is_none():
    assert not fate_of(ActorDeathCause()).died
