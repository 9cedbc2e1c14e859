//! What goes wrong below the backend.
