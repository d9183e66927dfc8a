//! What this host offers, looked up once, as plain data.
