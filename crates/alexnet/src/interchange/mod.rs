//! Weights from elsewhere: the convolutions of torchvision's AlexNet that ship with the program ([`imagenet`]), and
//! the layers of an earlier checkpoint ([`warm_start`]).

pub mod imagenet;
pub mod warm_start;

/// Which layers of a network received weights from elsewhere, and which start fresh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Copied {
    /// Names of the layers whose weights and biases were copied, first to last.
    pub copied: Vec<String>,
    /// Names of the layers that keep their fresh weights, each with the reason.
    pub fresh: Vec<(String, String)>,
}

impl std::fmt::Display for Copied {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "copied: {}", self.copied.join(", "))?;
        if !self.fresh.is_empty() {
            let fresh: Vec<String> = self.fresh.iter().map(|(name, why)| format!("{name} ({why})")).collect();
            write!(f, "; fresh: {}", fresh.join(", "))?;
        }
        Ok(())
    }
}
