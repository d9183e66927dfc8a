//! Executes the stack's commands on non-blocking host sockets and reports what
//! happened.
