//! What the generator adds to a latency is measured beside the floor: `ringpost-load own-floor`, small.

use ringpost_loadtest::cli::EXIT_OK;
use ringpost_loadtest::own_floor::OwnFloorArguments;

#[test]
fn the_generator_is_measured_beside_blocking_sockets() {
    let code = OwnFloorArguments { messages: 200, size: 4096 }.run();
    assert!(matches!(code, Ok(EXIT_OK)), "{:?}", code.map_err(|failure| failure.to_string()));
}
