//! The resolver as a process: its sockets are on the loopback interface, where every test takes
//! ports of its own and each container an address of 127.0.0.0/8. Nothing leaves the machine.

mod egress;
mod harness;
mod hostile;
mod names;
mod upstream;
