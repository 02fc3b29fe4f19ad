//! The real service against stand-ins for the others (`examples/fake_services.rs`): real
//! processes, sockets and deaths.

mod deaths;
mod installation;
mod life;
mod manager;
mod networks;
mod random;
mod spares;
mod templates;
mod usage;
