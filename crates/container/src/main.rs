//! `container`: everything is in the library, so that its parser can be rendered as man pages.

fn main() -> std::process::ExitCode {
    container::main()
}
