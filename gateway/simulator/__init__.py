"""An Ollama that holds no model: real shapes; speed, silence and faults on request.

    async with Simulator(Behaviour(per_second=30)) as ollama:
        ...ollama.url...

Text depends on the prompt alone, and lines of the prompt steer it: `say: …`, `think: …`, `call: name {…}` (see
`prompt`). `max_tokens` and `num_predict` set the length. With `Behaviour(steer=True)` `seed` is the milliseconds
between chunks, whose text is a `time.monotonic_ns()`: a client on the same machine subtracts, and has the delay.

Faults are armed in order and used up by the requests they apply to:

    ollama.faults.arm("cut", after=3)                       one call loses its connection after three frames
    ollama.faults.arm("busy", times=100, path="/v1")        a preset: 503, Ollama's own words (`PRESETS`)
    ollama.faults.arm("hang_before_headers", path="/api/version", times=None)
    ollama.faults.arm("refuse"); ollama.faults.clear()      connects are refused, then accepted again

`after` counts frames of a stream; where an answer is not streamed, `cut` and `hang_mid_stream` send half of it.
A fault that is to make the head wait for its turn, like a hang, takes a slot as a real generation would.

Other processes do the same over HTTP. These paths are not recorded and no fault touches them, but `refuse` shuts the
door on them too: give it `seconds`, or keep a connection open.

    GET    /simulator               behaviour, busy, peak, waiting, connections, loaded, faults, the last requests
    POST   /simulator/faults        {"kind": "cut", "after": 3}: the fields of `Fault`, or a preset as the kind
    DELETE /simulator/faults        disarm all
    POST   /simulator/behaviour     {"first_token": 2.5}: the fields of `Behaviour` to replace
    DELETE /simulator/requests      forget the requests, start a new peak

It stands beside the house: nothing but tests, demos, benchmarks and `ollama-gateway simulate` may import it.
"""

from gateway.simulator.behaviour import DEMO, Behaviour, SimulatedModel
from gateway.simulator.connection import Seen
from gateway.simulator.faults import PRESETS, Fault, Faults, Kind
from gateway.simulator.server import Simulator, serve

__all__ = ["DEMO", "PRESETS", "Behaviour", "Fault", "Faults", "Kind", "Seen", "SimulatedModel", "Simulator", "serve"]
