//! The locks and atomics of the union: the standard library's, or with the feature
//! `shuttle` those of the crate of that name, which runs threads in an order of its own
//! choosing. That is for the tests in [`crate::overlay`] alone.

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
pub(crate) use std::sync::{Arc, Weak};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
