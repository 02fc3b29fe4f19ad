//! Networks: how much goes through, what they add to a start and to a round trip, how long a name
//! takes, and a published port under load.
//!
//! All of it in network namespaces that the benchmark makes ([`e2e::World`]) and that go with it,
//! also when it fails: nothing touches the machine's own interfaces.

mod attach;
mod bare;
mod load;
mod lookup;
mod throughput;
mod trip;

pub use attach::attach;
pub use load::load;
pub use lookup::lookup;
pub use throughput::{PORT, TRANSFER, throughput};
pub use trip::trip;

use e2e::{Installation, World, busybox};

/// The network that is measured.
const NETWORK: &str = "measured";

/// An installation on a world's host, with a network and the busybox image.
struct Site {
    it: Installation,
    world: World,
}

impl Site {
    fn new(config: &str) -> Self {
        let world = World::new();
        let it = Installation::without_mode().in_place(&world.host);
        it.configure(config);
        it.load(&busybox::image().expect("the busybox image"));
        it.run(["network", "create", NETWORK]).ok();
        Self { it, world }
    }

    /// A container's IPv4 address.
    fn address(&self, container: &str) -> String {
        let address = self.it.inspect(container)["networks"][0]["ipv4Address"].clone();
        let address = address.as_str().unwrap_or_default();
        address.split('/').next().unwrap_or_default().to_owned()
    }
}
