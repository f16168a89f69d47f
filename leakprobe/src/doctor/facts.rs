//! What there is to know of a machine.

use leakprobe_common::Unwinding;
use serde::Serialize;

use crate::{
    cli::DEFAULT_MAX_STACKS,
    probe::{
        features::{self, Features, Mechanism, capability_refusal},
        load::{self, Settings, Trial, preallocate},
    },
    session,
};

/// What there is to know; as JSON, what `leakprobe doctor --format json` writes.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// leakprobe's version.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor, as Rust calls it.
    pub arch: String,
    /// What the kernel offers; `None` where this process may not ask.
    pub features: Option<Features>,
    /// Whether leakprobe can work here.
    pub usable: bool,
    /// Why not, in one line (but for the verifier's words).
    pub refusal: Option<String>,
    /// Whether return probes endanger a process that has a seccomp filter.
    pub seccomp_hazard: bool,
    /// Why `--kernel` does not work here; `None` when it does, or when leakprobe does not work at all.
    pub kernel_refusal: Option<String>,
    /// Which tracepoints `--kernel` uses: `raw` or `classic`; `None` when it does not work.
    pub kernel_tracepoints: Option<&'static str>,
    /// Each of leakprobe's BPF programs, as it was loaded just now.
    pub programs: Vec<ProgramFact>,
}

/// What the kernel made of a program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProgramFact {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier went through; `None` when it was refused or the kernel does not say.
    pub instructions: Option<u64>,
    /// Time that loading took, milliseconds; `None` when it was refused.
    pub load_ms: Option<f64>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Facts {
    /// Asks this machine.
    pub fn gather() -> Self {
        let permitted = capability_refusal(features::own_capabilities()).is_none();
        let features = permitted.then(Features::probe);
        let mut refusal = features::refusal_here();
        let mut programs = Vec::new();
        if let (Some(features), None) = (&features, &refusal) {
            match load::try_all(&settings(), features.mechanism()) {
                Ok(trials) => programs = trials.into_iter().map(ProgramFact::from).collect(),
                Err(error) => refusal = Some(format!("{error:#}")),
            }
            refusal = refusal.or_else(|| programs.iter().find_map(|program| program.error.clone()));
        }
        let (mut kernel_refusal, mut kernel_tracepoints) = (None, None);
        if permitted && refusal.is_none() {
            match session::examine_kernel() {
                Ok((shape, trials)) => {
                    let trials: Vec<_> = trials.into_iter().map(ProgramFact::from).collect();
                    kernel_refusal = trials.iter().find_map(|program| program.error.clone());
                    kernel_tracepoints = kernel_refusal.is_none().then(|| shape.tracepoints.name());
                    programs.extend(trials);
                }
                Err(error) => kernel_refusal = Some(format!("{error:#}")),
            }
        }
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: features::release(),
            arch: std::env::consts::ARCH.to_owned(),
            features,
            usable: refusal.is_none(),
            refusal,
            seccomp_hazard: session::kernel_is_hazardous(),
            kernel_refusal,
            kernel_tracepoints,
            programs,
        }
    }

    /// How a session on this machine attaches its probes.
    pub fn mechanism(&self) -> Option<Mechanism> {
        self.features.map(|features| features.mechanism())
    }
}

/// Those of a session without options.
fn settings() -> Settings {
    let preallocate = !features::maps_on_demand();
    Settings {
        follow: false,
        min_size: 0,
        max_size: u64::MAX,
        max_blocks: preallocate::max_blocks(preallocate),
        preallocate,
        max_stacks: DEFAULT_MAX_STACKS,
        unwinding: Unwinding::Auto,
        copied_one_in: 0,
        row_chunks: 1,
        targets: 1,
        ranges: false,
        diagnostics: false,
        floor: false,
    }
}

impl From<Trial> for ProgramFact {
    fn from(trial: Trial) -> Self {
        let (instructions, load_ms, error) = match trial.outcome {
            Ok((instructions, time)) => (instructions, Some((time.as_secs_f64() * 1e6).round() / 1e3), None),
            Err(error) => (None, None, Some(format!("{error:#}"))),
        };
        Self { name: trial.name.to_owned(), instructions, load_ms, error }
    }
}
