//! `container-network`: see the library.

fn main() -> std::process::ExitCode {
    container_network::service::main()
}
