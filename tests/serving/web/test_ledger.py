"""The page's ledger beside the client's: what they send again, and from where they resume, is the same."""

import json
import random
from typing import Any

from prospect.client.ledger import Ledger
from prospect.protocol.messages import SessionCreated, SessionUpdate, StatePatch, TextAppend
from prospect.protocol.parsing import parse_server
from tests.serving.clients import Server
from tests.serving.web.conftest import Visit

NUM_TURNS = 60
PLAY = """async (turns) => {
  const { Ledger } = await import("/web/ledger.js");
  const ledger = new Ledger({ goal: "Make tea" });
  const told = (turn) => {
    switch (turn.do) {
      case "created": ledger.created = turn.message; return null;
      case "frame": return ledger.frame("AAAA", turn.pts);
      case "text": return ledger.text(turn.text, turn.id);
      case "patch": return ledger.patch(turn.state);
      case "hear": return [ledger.note(turn.message), ledger.over, ledger.acknowledgement()];
      case "resume": return [ledger.resuming(), ledger.toSendAgain()];
    }
  };
  return [ledger.opening(), ...turns.map(told)];
}"""


def created(next_seq: int) -> dict[str, Any]:
    message = SessionCreated(
        session_id="a", resume=f"a:{next_seq}", fps=2, fingerprint="f", tokens_per_frame=1, next_seq=next_seq, state={}
    )
    return message.model_dump(mode="json", exclude_none=True)


def draw_turns(rng: random.Random) -> list[dict[str, Any]]:
    """What happens to a session: messages of both sides, some of the server's again or out of order."""
    turns: list[dict[str, Any]] = [{"do": "created", "message": created(0)}]
    sent = event = 0
    while len(turns) < NUM_TURNS:
        seq, kind = rng.randrange(max(1, sent)), rng.choice("fffftpdddddmsxeerrc")
        number = event + rng.choice([1, 1, 1, 0, 40])
        durable = {"event": number}
        heard: dict[str, Any] | None = None
        match kind:
            case "f":
                turns.append({"do": "frame", "pts": sent / 2})
                sent += 1
            case "t":
                turns.append({"do": "text", "text": "What now?", "id": f"t{len(turns)}"})
            case "p":
                turns.append({"do": "patch", "state": {"S1": rng.choice(["completed", "not_started"])}})
            case "d":
                heard = {"type": "decision", "seq": seq, "frame": seq, "p_speak": 0, "p_update": 0}
            case "m":
                heard = {"type": "session.moved", "decided_to": seq}
            case "s":
                heard = {"type": "state.updated", "state": {}, **durable} | rng.choice([{}, {"seq": seq, "frame": seq}])
            case "x":
                heard = {"type": "frame.dropped", "seq": seq, "reason": "full", **durable}
            case "e":
                others = {"field": "state.S1"}, {"field": "image", "seq": seq}, {"code": "busy"}
                other = rng.choice([*others, {"code": "unknown_session", "seq": seq}])
                heard = {"type": "error", "code": "wrong", "message": "no"} | other
            case "r":
                turns += [{"do": "created", "message": created(seq)}, {"do": "resume"}]
            case "c":
                heard = {"type": "response.done", "seq": seq, "frame": seq, "text": "Now.", **durable}
        if heard is not None:
            event = max(event, heard.get("event", 0))
            turns.append({"do": "hear", "message": heard})
    return [
        *turns,
        {"do": "hear", "message": {"type": "session.closed", "session_id": "a", "reason": "idle", "frames": 1}},
    ]


def plain(message: Any) -> dict[str, Any]:
    content = json.loads(message.model_dump_json(exclude_unset=True))
    return {"type": message.type, **content}


def play(turns: list[dict[str, Any]]) -> list[Any]:
    """What the client's ledger says to all that."""
    ledger = Ledger(SessionUpdate(goal="Make tea"), True, None)
    told: list[Any] = [plain(ledger.opening())]
    for turn in turns:
        match turn["do"]:
            case "created":
                ledger.created = parse_server(json.dumps(turn["message"]))
                told.append(None)
            case "frame":
                told.append(keep(ledger, ledger.next_frame(b"\0\0\0", turn["pts"])))
            case "text":
                told.append(keep(ledger, TextAppend(text=turn["text"], id=turn["id"])))
            case "patch":
                told.append(keep(ledger, StatePatch(state=turn["state"])))
            case "hear":
                is_new = ledger.note(parse_server(json.dumps(turn["message"])))
                due = ledger.acknowledgement()
                told.append([is_new, ledger.over, due and plain(due)])
            case "resume":
                resuming = {key: value for key, value in plain(ledger.resuming()).items() if value is not None}
                told.append([resuming, [plain(each) for each in ledger.to_send_again()]])
    return told


def keep(ledger: Ledger, message: Any) -> dict[str, Any]:
    ledger.keep(message)
    return plain(message)


def test_both_ledgers_say_the_same(quiet: Server, visit: Visit):
    page = visit(quiet)
    acknowledged = 0
    for seed in range(60):
        turns = draw_turns(random.Random(seed))
        expected = play(turns)
        assert page.evaluate(PLAY, turns) == expected, f"seed {seed}"
        acknowledged += sum(isinstance(each, list) and each[-1] is not None and len(each) == 3 for each in expected)
    assert acknowledged, "some were long enough"
