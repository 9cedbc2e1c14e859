//! Finds a compiler and turns sources into code objects, through a cache.
