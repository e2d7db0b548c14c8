//! The allocated addresses of this host: one file per address in a folder per network, in the format of the reference
//! plugin host-local.
//!
//! * [`ranges`]: arithmetic of ranges; [`owner`]: the owner of an address
//! * [`store`]: the owners of addresses, on disk; [`index`]: the same in memory; [`runs`]: which numbers are free
//! * [`free`]: the search for a free address; [`list`]: a listing that changes nothing

mod free;
mod index;
mod list;
mod owner;
mod ranges;
mod runs;
mod store;

pub(crate) use index::Indexes;
pub(crate) use list::listed;
pub(crate) use owner::Owner;
pub(crate) use ranges::{check, nth, overlaps};
pub(crate) use store::Store;
