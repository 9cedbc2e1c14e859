//! Digests of lists of fields, each framed by its length, so that no two lists run together.

/// A digest in the making.
pub(crate) struct Fields(blake3::Hasher);

impl Fields {
    /// Starts with what the digest is for: digests of different kinds never meet.
    pub(crate) fn new(kind: &str) -> Self {
        let mut fields = Self(blake3::Hasher::new());
        fields.add(b"vyre-hip").add(kind.as_bytes());
        fields
    }

    /// Adds one field.
    pub(crate) fn add(&mut self, field: &[u8]) -> &mut Self {
        self.0.update(&(field.len() as u64).to_le_bytes());
        self.0.update(field);
        self
    }

    pub(crate) fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_together() {
        let digest = |fields: &[&str]| {
            let mut all = Fields::new("test");
            for field in fields {
                all.add(field.as_bytes());
            }
            all.finish()
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["a"]), digest(&["a", ""]));
        assert_eq!(digest(&["a", "b"]), digest(&["a", "b"]));
    }
}
