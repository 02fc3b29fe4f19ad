//! The table of `system df`, and the lines of `system status` about templates and spares.

use container_api::apiserver::{SpareStatus, TemplateStatus};
use container_api::types::{DiskUsage, UsageOf};

use super::size;

/// A row for each kind of thing, as apple/container has them, and the memory they hold.
pub fn table(usage: &DiskUsage) -> String {
    let row = |name: &str, of: UsageOf| {
        [
            name.to_owned(),
            of.total.to_string(),
            of.active.to_string(),
            size(of.size_in_bytes),
            reclaimable(of),
            size(of.memory_in_bytes),
        ]
    };
    let rows = [
        row("Images", usage.images),
        row("Containers", usage.containers),
        row("Templates", usage.templates),
        row("Volumes", usage.volumes),
        row("Spares", usage.spares),
    ];
    super::table(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE", "MEMORY"], &rows)
}

fn reclaimable(of: UsageOf) -> String {
    let part = match of.size_in_bytes {
        0 => 0.0,
        all => (of.reclaimable as f64 / all as f64 * 100.0).min(100.0),
    };
    format!("{} ({part:.0}%)", size(of.reclaimable))
}

/// `1 template`, `2 templates`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A template in one line.
pub fn template(template: &TemplateStatus) -> String {
    format!(
        "{}: {}, {}, {}, {} on disk",
        short(&template.id),
        count(template.resources.cpus.into(), "CPU"),
        size(template.resources.memory_in_bytes),
        template.state,
        size(template.size_in_bytes)
    )
}

/// A spare in one line.
pub fn spare(spare: &SpareStatus) -> String {
    let (of, memory) = (short(&spare.template), size(spare.memory_in_bytes));
    let purpose = if spare.mappable { " (for bind mounts)" } else { "" };
    format!("of {of}{purpose}: {}, {memory} in memory", spare.state)
}

fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use container_api::types::Resources;

    #[test]
    fn usage_has_a_row_for_each_kind() {
        let images = UsageOf {
            total: 2,
            active: 1,
            size_in_bytes: 3 << 20,
            reclaimable: 1 << 20,
            memory_in_bytes: 0,
        };
        let expected = "\
TYPE        TOTAL  ACTIVE  SIZE    RECLAIMABLE   MEMORY
Images      2      1       3.0 MB  1.0 MB (33%)  0 B
Containers  0      0       0 B     0 B (0%)      0 B
Templates   0      0       0 B     0 B (0%)      0 B
Volumes     0      0       0 B     0 B (0%)      0 B
Spares      0      0       0 B     0 B (0%)      0 B
";
        assert_eq!(table(&DiskUsage { images, ..DiskUsage::default() }), expected);
    }

    #[test]
    fn templates_and_spares_are_a_line_each() {
        let of = TemplateStatus {
            id: "0123456789abcdef".into(),
            resources: Resources { cpus: 1, memory_in_bytes: 256 << 20 },
            state: "ready".into(),
            size_in_bytes: 57 << 20,
        };
        let expected = "0123456789ab: 1 CPU, 256.0 MB, ready, 57.0 MB on disk";
        assert_eq!(template(&of), expected);
        let of = SpareStatus {
            template: of.id,
            mappable: true,
            state: "ready".into(),
            memory_in_bytes: 1 << 25,
        };
        assert_eq!(spare(&of), "of 0123456789ab (for bind mounts): ready, 32.0 MB in memory");
        assert_eq!((count(1, "x"), count(0, "x")), ("1 x".into(), "0 xs".into()));
    }
}
