//! One measured figure: samples of ours, perhaps of a peer, and what was promised.

use std::fmt;

use serde_json::{Value, json};

/// What a figure must keep.
#[derive(Clone, Copy, Debug)]
pub enum Promise {
    /// The median of ours is at most that many times the peer's.
    Ratio(f64),
    /// The median of ours is at least that many times the peer's.
    RatioAtLeast(f64),
    /// The median of ours is at most that.
    AtMost(f64),
    /// The median of ours is at least that.
    AtLeast(f64),
    /// Stated, nothing promised.
    Stated,
}

/// The samples and their meaning.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// `ms`, `MiB`, `MiB/s`.
    pub unit: &'static str,
    /// Samples of ours.
    pub ours: Vec<f64>,
    /// The peer, and its samples.
    pub peer: Option<(&'static str, Vec<f64>)>,
    /// What must hold.
    pub promise: Promise,
}

/// The value that `part` of the samples lie below.
pub fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The middle sample.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

impl Figure {
    /// One of ours alone.
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
        promise: Promise,
    ) -> Self {
        Self { name: name.into(), unit, ours, peer: None, promise }
    }

    /// With the samples of a peer.
    pub fn against(self, peer: &'static str, samples: Vec<f64>) -> Self {
        Self { peer: Some((peer, samples)), ..self }
    }

    /// Ours divided by the peer's, by medians.
    pub fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer.as_ref()?;
        Some(median(&self.ours) / median(peer))
    }

    /// Whether the promise is kept; nothing where none was made.
    pub fn kept(&self) -> Option<bool> {
        match self.promise {
            Promise::Ratio(bound) => Some(self.ratio()? <= bound),
            Promise::RatioAtLeast(bound) => Some(self.ratio()? >= bound),
            Promise::AtMost(bound) => Some(median(&self.ours) <= bound),
            Promise::AtLeast(bound) => Some(median(&self.ours) >= bound),
            Promise::Stated => None,
        }
    }

    fn verdict(&self) -> &'static str {
        match self.kept() {
            Some(true) => "kept",
            Some(false) => "MISSED",
            None => "stated",
        }
    }

    fn promised(&self) -> String {
        match self.promise {
            Promise::Ratio(bound) => format!("≤ {bound} ×"),
            Promise::RatioAtLeast(bound) => format!("≥ {bound} ×"),
            Promise::AtMost(bound) => format!("≤ {bound} {}", self.unit),
            Promise::AtLeast(bound) => format!("≥ {bound} {}", self.unit),
            Promise::Stated => "–".to_owned(),
        }
    }

    /// For the report.
    pub fn json(&self) -> Value {
        let summary = |samples: &[f64]| {
            json!({
                "median": median(samples),
                "p10": quantile(samples, 0.1),
                "p90": quantile(samples, 0.9),
                "samples": samples,
            })
        };
        json!({
            "name": self.name,
            "unit": self.unit,
            "ours": summary(&self.ours),
            "peer": self.peer.as_ref().map(|(name, samples)| {
                json!({"name": name, "samples": summary(samples)})
            }),
            "ratio": self.ratio(),
            "promised": self.promised(),
            "verdict": self.verdict(),
        })
    }

    /// For the table of the documentation.
    pub fn row(&self) -> String {
        let spread = |samples: &[f64]| {
            if let [only] = samples {
                return format!("{only:.1} {}", self.unit);
            }
            format!(
                "{:.1} {} ({:.1}–{:.1})",
                median(samples),
                self.unit,
                quantile(samples, 0.1),
                quantile(samples, 0.9)
            )
        };
        let peer = self
            .peer
            .as_ref()
            .map_or("–".to_owned(), |(name, samples)| format!("{} ({name})", spread(samples)));
        let ratio = self.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.2} ×"));
        format!(
            "| {} | {} | {peer} | {ratio} | {} | {} |",
            self.name,
            spread(&self.ours),
            self.promised(),
            self.verdict()
        )
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.2} {}", self.name, median(&self.ours), self.unit)?;
        if let (Some((name, samples)), Some(ratio)) = (&self.peer, self.ratio()) {
            write!(f, ", {name} {:.2} {}, ratio {ratio:.2}", median(samples), self.unit)?;
        }
        write!(f, " (promised {}: {})", self.promised(), self.verdict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_and_promises() {
        let figure = Figure {
            name: "x".into(),
            unit: "ms",
            ours: vec![3.0, 1.0, 2.0],
            peer: Some(("peer", vec![1.0, 1.0, 10.0])),
            promise: Promise::Ratio(2.0),
        };
        assert_eq!(figure.ratio(), Some(2.0));
        assert_eq!(figure.kept(), Some(true));
        let missed = Figure { promise: Promise::AtMost(1.9), ..figure };
        assert_eq!(missed.kept(), Some(false));
        assert!(missed.to_string().contains("MISSED"));
    }
}
