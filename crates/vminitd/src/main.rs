//! `/init` of the guest, and `/warm-up` of its throwaway container.

fn main() {
    vminitd::main()
}
