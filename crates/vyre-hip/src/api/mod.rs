//! Finds a GPU library and fills the table of its functions.
