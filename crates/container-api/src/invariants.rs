//! What holds of an installation whenever nothing is under way, and what is found where it does
//! not.

use serde::{Deserialize, Serialize};

/// One thing that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// Containers and their directories.
    Containers,
    /// States and processes of containers.
    States,
    /// Processes of the installation.
    Processes,
    /// Files that are made and removed.
    Files,
    /// The content store.
    Images,
    /// Templates and spares.
    Templates,
    /// Volumes.
    Volumes,
    /// What containers have of networks.
    Networks,
    /// The audit trail.
    Audit,
}

impl Invariant {
    /// All of them, in the order in which they are checked.
    pub const ALL: [Invariant; 9] = [
        Invariant::Containers,
        Invariant::States,
        Invariant::Processes,
        Invariant::Files,
        Invariant::Images,
        Invariant::Templates,
        Invariant::Volumes,
        Invariant::Networks,
        Invariant::Audit,
    ];

    /// What should hold, in a few words.
    pub fn text(self) -> &'static str {
        match self {
            Invariant::Containers => "recorded containers are those on the disk",
            Invariant::States => "states are those of living processes",
            Invariant::Processes => "every process is known",
            Invariant::Files => "nothing is half-made or left behind",
            Invariant::Images => "images are whole",
            Invariant::Templates => "templates and spares are those recorded",
            Invariant::Volumes => "volumes are whole, and held by running containers",
            Invariant::Networks => "addresses, taps, rules and ports are of running containers",
            Invariant::Audit => "the trail is whole",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Findings {
    /// How many things were looked at.
    pub looked_at: u64,
    /// What does not hold, a line each, which says what is wrong and with what.
    pub violations: Vec<String>,
    /// What is worth knowing, though nothing is wrong.
    pub remarks: Vec<String>,
}

impl Findings {
    /// Notes one thing that was looked at, and what is wrong with it.
    pub fn look(&mut self, wrong: Option<String>) {
        self.looked_at += 1;
        self.violations.extend(wrong);
    }

    /// Adds what somebody else has found.
    pub fn add(&mut self, other: Findings) {
        self.looked_at += other.looked_at;
        self.violations.extend(other.violations);
        self.remarks.extend(other.remarks);
    }
}

/// What was found of one invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// Which.
    pub invariant: Invariant,
    /// What of it.
    pub findings: Findings,
    /// Why nothing can be said, if so.
    pub not_run: Option<String>,
}
