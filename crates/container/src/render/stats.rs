//! The table of `stats`, with apple/container's headings.

use std::collections::BTreeMap;

use container_api::types::ContainerStats;

/// A row for each of `now`; the share of a CPU is that since the row in `before`.
pub fn table(now: &[ContainerStats], before: &BTreeMap<String, ContainerStats>) -> String {
    let rows: Vec<_> = now
        .iter()
        .map(|row| {
            [
                row.id.clone(),
                before
                    .get(&row.id)
                    .and_then(|old| cpu_percent(old, row))
                    .map_or("-".into(), |percent| format!("{percent:.2}%")),
                format!("{} / {}", bytes(row.memory_usage_bytes), bytes(row.memory_limit_bytes)),
                bytes(row.host_memory_bytes),
                pair(row.network_rx_bytes, row.network_tx_bytes),
                pair(Some(row.block_read_bytes), Some(row.block_write_bytes)),
                row.num_processes.to_string(),
            ]
        })
        .collect();
    let headings =
        ["Container ID", "Cpu %", "Memory Usage", "Host Memory", "Net Rx/Tx", "Block I/O", "Pids"];
    super::table(headings, &rows)
}

/// 100 is one CPU. `None` for a container that was started anew, whose count is another one.
fn cpu_percent(before: &ContainerStats, now: &ContainerStats) -> Option<f64> {
    let used_usec = now.cpu_usage_usec.checked_sub(before.cpu_usage_usec)?;
    let passed_ns = now.sampled_at_ns.checked_sub(before.sampled_at_ns).filter(|ns| *ns > 0)?;
    Some(used_usec as f64 * 1e3 / passed_ns as f64 * 100.0)
}

fn pair(one: Option<u64>, other: Option<u64>) -> String {
    match (one, other) {
        (None, None) => "-".into(),
        (one, other) => {
            let shown = |value: Option<u64>| value.map_or("-".into(), bytes);
            format!("{} / {}", shown(one), shown(other))
        }
    }
}

/// Bytes as apple/container's `stats` shows them.
fn bytes(value: u64) -> String {
    const KIB: f64 = 1024.0;
    let value = value as f64;
    if value >= KIB * KIB * KIB {
        format!("{:.2} GiB", value / KIB / KIB / KIB)
    } else if value >= KIB * KIB {
        format!("{:.2} MiB", value / KIB / KIB)
    } else {
        format!("{:.2} KiB", value / KIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cpu_usage_usec: u64, sampled_at_ns: u64) -> ContainerStats {
        ContainerStats {
            id: "web".into(),
            memory_usage_bytes: 3 << 19,
            memory_limit_bytes: 1 << 30,
            host_memory_bytes: 30 << 20,
            cpu_usage_usec,
            sampled_at_ns,
            network_rx_bytes: None,
            network_tx_bytes: None,
            block_read_bytes: 512,
            block_write_bytes: 0,
            num_processes: 3,
        }
    }

    #[test]
    fn a_row_has_the_share_since_the_last_one() {
        let before = BTreeMap::from([("web".to_owned(), row(1_000_000, 5_000_000_000))]);
        let expected = "\
Container ID  Cpu %   Memory Usage         Host Memory  Net Rx/Tx  Block I/O            Pids
web           25.00%  1.50 MiB / 1.00 GiB  30.00 MiB    -          0.50 KiB / 0.00 KiB  3
";
        assert_eq!(table(&[row(1_500_000, 7_000_000_000)], &before), expected);
        let first = table(&[row(1, 2)], &BTreeMap::new());
        assert!(first.lines().nth(1).unwrap().starts_with("web           -      1.50"), "{first}");
        // Started anew meanwhile.
        assert!(table(&[row(10, 8_000_000_000)], &before).contains("web           -  "));
    }
}
