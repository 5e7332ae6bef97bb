//! The vectors that the processor has, found out when the program runs.

#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};
use pulp::{Arch, Simd, WithSimd};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Vectors {
    /// 16 values.
    #[cfg(target_arch = "x86_64")]
    Avx512(V4),
    /// 8 values.
    #[cfg(target_arch = "x86_64")]
    Avx2(V3),
    /// Of another processor: NEON, or none.
    Other(Arch),
}

impl Vectors {
    /// The widest.
    pub(crate) fn widest() -> Vectors {
        Vectors::all()[0]
    }

    /// All there are, widest first; last without vectors.
    pub(crate) fn all() -> Vec<Vectors> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        all.extend(V4::try_new().map(Vectors::Avx512).into_iter().chain(V3::try_new().map(Vectors::Avx2)));
        #[cfg(not(target_arch = "x86_64"))]
        all.push(Vectors::Other(Arch::new()));
        all.push(Vectors::Other(Arch::Scalar));
        all
    }

    /// Runs `job`, compiled for these vectors.
    pub(crate) fn dispatch<J: WithSimd>(self, job: J) -> J::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512(simd) => Simd::vectorize(simd, job),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2(simd) => Simd::vectorize(simd, job),
            Vectors::Other(arch) => arch.dispatch(job),
        }
    }
}
