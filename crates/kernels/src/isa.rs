//! The tiers of instructions, best first, and the one place where a tier is chosen.

/// A tier of instructions that this processor has. A value can only be had from [`Isa::best`], [`Isa::all`] or
/// [`Isa::by_name`], which ask the processor: holding one is proof that its kernels can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Tier);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// Every tier that this processor has, best first.
    pub fn all() -> Vec<Isa> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            // Every processor with AVX-512 but the first few has all three parts.
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("fma") {
                tiers.push(Isa(Tier::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                tiers.push(Isa(Tier::Avx2));
            }
        }
        tiers.push(Isa(Tier::Portable));
        tiers
    }

    /// The best tier, or the one that the environment variable `ALEXNET_ISA` names.
    ///
    /// # Errors
    /// If `ALEXNET_ISA` names a tier that does not exist or that this processor lacks.
    pub fn best() -> Result<Isa, String> {
        match std::env::var("ALEXNET_ISA") {
            Ok(name) if !name.is_empty() => {
                Isa::by_name(&name).map_err(|why| format!("ALEXNET_ISA={name}: {why}"))
            }
            _ => Ok(Isa::all()[0]),
        }
    }

    /// The tier of this name: `avx512`, `avx2` or `portable`.
    ///
    /// # Errors
    /// If there is no such tier or this processor lacks it.
    pub fn by_name(name: &str) -> Result<Isa, String> {
        let all = Isa::all();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|isa| isa.name()).collect();
            format!("this processor has {}", names.join(", "))
        })
    }

    /// `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => "avx2",
            Tier::Portable => "portable",
        }
    }

    /// Elements of an f32 vector.
    pub fn lanes(self) -> usize {
        use crate::simd::{Portable, Simd};
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => <crate::simd::Avx512>::LANES,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => crate::simd::Avx2::LANES,
            Tier::Portable => Portable::LANES,
        }
    }

    pub(crate) fn tier(self) -> Tier {
        self.0
    }

    /// Widest panel in vectors; [`crate::panel`] divides channels into panels.
    pub(crate) fn panel_vectors(self) -> usize {
        use crate::simd::{Portable, Simd};
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => <crate::simd::Avx512>::PANEL,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => crate::simd::Avx2::PANEL,
            Tier::Portable => Portable::PANEL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_tier_is_found_by_its_name() {
        for isa in Isa::all() {
            assert_eq!(Isa::by_name(isa.name()), Ok(isa));
        }
        assert_eq!(Isa::all().last().unwrap().name(), "portable");
        assert!(Isa::by_name("sse9").unwrap_err().contains("portable"));
    }
}
