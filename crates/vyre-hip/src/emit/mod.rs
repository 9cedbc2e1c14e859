//! A validated program as HIP C++, one source for both vendors.
