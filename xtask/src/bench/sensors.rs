//! What a device draws and moves over its bus, as its vendor's tool says.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::statistics::Spread;

/// Over the seconds of a look.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Readings {
    /// Watts.
    pub(super) power: Option<Spread>,
    /// Megabytes a second that arrive at the device.
    pub(super) received: Option<Spread>,
}

/// Looks once a second for so long, or waits as long if there is no tool.
pub(super) fn look(seconds: u32) -> Result<Readings> {
    let seconds = seconds.to_string();
    // Power and temperature, bus throughput; the first device is the one that is measured.
    let watch =
        Command::new("nvidia-smi").args(["dmon", "-i", "0", "-s", "pt", "-d", "1", "-c", &seconds]).output();
    match watch {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "nvidia-smi dmon says: {}", text.trim());
            parse(&text)
        }
        Err(error) => {
            std::thread::sleep(Duration::from_secs(seconds.parse()?));
            Err(error).context("no nvidia-smi to ask")
        }
    }
}

/// A header names the columns; a dash stands for what the device does not tell.
fn parse(text: &str) -> Result<Readings> {
    let header =
        text.lines().find_map(|line| line.strip_prefix('#')).context("nvidia-smi dmon names no columns")?;
    let names: Vec<&str> = header.split_whitespace().collect();
    let column = |name: &str| {
        let at = names.iter().position(|column| *column == name)?;
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        let values: Vec<f64> = rows.filter_map(|row| row.split_whitespace().nth(at)?.parse().ok()).collect();
        Spread::of(&values)
    };
    Ok(Readings { power: column("pwr"), received: column("rxpci") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name() {
        let text = "# gpu    pwr  gtemp  mtemp  rxpci  txpci \n# Idx      W      C      C   MB/s   MB/s \n    \
                    0     76     31     38    120      9 \n    0     78     31      -    122      9 \n";
        let readings = parse(text).expect("columns");
        let spread = |low, high| Some(Spread { p10: low, median: high, p90: high });
        assert_eq!(readings, Readings { power: spread(76.0, 78.0), received: spread(120.0, 122.0) });
        let unknown = parse("# gpu pwr rxpci\n# Idx W MB/s\n 0 - 7\n").expect("columns");
        assert_eq!((unknown.power, unknown.received.map(|spread| spread.median)), (None, Some(7.0)));
        assert!(parse("nothing").is_err());
    }
}
