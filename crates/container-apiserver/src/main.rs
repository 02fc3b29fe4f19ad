//! `container-apiserver`: see the library.

fn main() -> std::process::ExitCode {
    container_apiserver::run::main()
}
