use std::{fmt, str::FromStr};

use crate::ModelError;

/// Where the network runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Device {
    /// `cuda:0` where it can be opened, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => out.write_str("auto"),
            Device::Cpu => out.write_str("cpu"),
            Device::Cuda(index) => write!(out, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Device, ModelError> {
        let unknown = || ModelError::UnknownDevice(text.to_string());
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                Ok(Device::Cuda(index.parse().map_err(|_| unknown())?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
