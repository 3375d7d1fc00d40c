//! How trainings asked for over the API are kept and carried out, and where what they need and make lies.

use serde::{Deserialize, Serialize};

use crate::artifacts::text_files;
use crate::memory;
use crate::numerics::device::{DeviceChoice, DeviceError, MatrixType};

/// Hours.
const LONGEST_KEPT: u64 = 87_600;
/// What a training may take where neither the settings nor the system say how much there is, in MiB.
const MEMORY_UNKNOWN_MIB: u64 = 4096;

/// Where uploaded text, checkpoints and trained models are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArtifactSettings {
    /// A folder, or `s3://BUCKET` or `s3://BUCKET/PREFIX` in a service that speaks S3; empty for `artifacts` in
    /// `data_dir`. The key to a service is in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    pub url: String,
    /// The service's address, where it is not Amazon's: `https://minio.example.org`.
    pub endpoint: String,
    /// The service's region; empty for AWS_REGION's.
    pub region: String,
    /// Hours that something is kept after nothing needs it any more, and what a failed job could go on from.
    pub keep_hours: u64,
}

impl ArtifactSettings {
    /// The bucket and what keys begin with in it, where a bucket is named.
    pub fn bucket(&self) -> Option<(&str, &str)> {
        let place = self.url.strip_prefix("s3://")?;
        Some(place.split_once('/').unwrap_or((place, "")))
    }

    /// What no single key can tell.
    pub(super) fn check(&self) -> Result<(), String> {
        let named = self.bucket().filter(|(bucket, _)| !bucket.is_empty());
        if self.url.contains("://") && named.is_none() {
            return Err("artifacts.url must be a folder or s3://BUCKET/PREFIX".to_owned());
        }
        if !(1..=LONGEST_KEPT).contains(&self.keep_hours) {
            return Err(format!(
                "artifacts.keep_hours is {}; it must be between 1 and {LONGEST_KEPT}, ten years",
                self.keep_hours
            ));
        }
        let service = !self.endpoint.is_empty() || !self.region.is_empty();
        if service && self.bucket().is_none() {
            return Err(
                "artifacts.endpoint and artifacts.region are for an artifacts.url of s3://BUCKET"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl Default for ArtifactSettings {
    fn default() -> Self {
        ArtifactSettings {
            url: String::new(),
            endpoint: String::new(),
            region: String::new(),
            keep_hours: 24,
        }
    }
}

/// How trainings asked for over the API are kept and carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobSettings {
    /// Where jobs are kept, as `postgres://...`; empty for SQLite in `data_dir`, which is for one machine.
    pub database: String,
    /// Jobs that this server carries out at once; with 0 it only serves, and `causeway worker` carries them out.
    pub workers: usize,
    /// Threads of a training's process.
    pub threads: usize,
    /// How far a training stands back behind everything else on the machine: 0 not at all, 19 up to using idle cores
    /// only.
    pub nice: i32,
    /// What trainings compute on, separated by commas: each worker has one of them, in turn.
    pub devices: Devices,
    /// What a device takes the products of a training in.
    pub dtype: MatrixType,
    /// A training that takes more memory is ended, in MiB; 0 for half of what the machine, or the container, has.
    pub memory_mib: u64,
    /// Seconds after which a job whose worker is not heard of is taken over.
    pub lease_seconds: u64,
    /// The longest file that may be uploaded, in bytes.
    pub max_file_bytes: u64,
    /// The longest line of an uploaded file, in bytes.
    pub max_line_bytes: u64,
    /// Files that are kept.
    pub max_files: u64,
    /// Bytes of all files that are kept, together.
    pub max_files_bytes: u64,
    /// Jobs that are kept, those that have ended among them.
    pub max_jobs: u64,
}

/// Devices that workers take in turn; written as one text, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Devices(Vec<DeviceChoice>);

impl Devices {
    /// That of the worker of this number.
    pub fn of_worker(&self, number: usize) -> DeviceChoice {
        let turn = self.0.iter().cycle().nth(number % self.0.len().max(1));
        turn.copied().unwrap_or(DeviceChoice::Cpu)
    }
}

impl TryFrom<String> for Devices {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        let each = text.split(',').map(|device| device.trim().parse());
        each.collect::<Result<_, _>>().map(Devices)
    }
}

impl From<Devices> for String {
    fn from(devices: Devices) -> String {
        let names: Vec<String> = devices.0.iter().map(DeviceChoice::to_string).collect();
        names.join(",")
    }
}

impl JobSettings {
    /// What a training may take, in MiB.
    pub fn most_memory_mib(&self) -> u64 {
        match self.memory_mib {
            0 => memory::total_mib().map_or(MEMORY_UNKNOWN_MIB, |total| total / 2),
            limit => limit,
        }
    }

    /// What no single key can tell.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, value, most) in [
            ("threads", self.threads as u64, u64::MAX),
            ("lease_seconds", self.lease_seconds, u64::MAX),
            (
                "max_file_bytes",
                self.max_file_bytes,
                text_files::LARGEST_FILE,
            ),
            (
                "max_line_bytes",
                self.max_line_bytes,
                text_files::LARGEST_FILE,
            ),
            ("max_files", self.max_files, u64::MAX),
            ("max_files_bytes", self.max_files_bytes, u64::MAX),
            ("max_jobs", self.max_jobs, u64::MAX),
        ] {
            if value == 0 {
                return Err(format!("jobs.{name} is 0; at least 1 is needed"));
            }
            if value > most {
                return Err(format!(
                    "jobs.{name} is {value}; at most {most} can be read"
                ));
            }
        }
        match (0..=19).contains(&self.nice) {
            true => Ok(()),
            false => Err("jobs.nice must be between 0 and 19".to_owned()),
        }
    }
}

impl Default for JobSettings {
    fn default() -> Self {
        JobSettings {
            database: String::new(),
            workers: 1,
            threads: 1,
            nice: 19,
            devices: Devices(vec![DeviceChoice::Cpu]),
            dtype: MatrixType::Float32,
            memory_mib: 0,
            lease_seconds: 30,
            max_file_bytes: 1 << 30,
            max_line_bytes: 16 << 20,
            max_files: 1000,
            max_files_bytes: 16 << 30,
            max_jobs: 10_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_is_bounded_by_half_of_the_machine_unless_told_otherwise() {
        let default = JobSettings::default().most_memory_mib();
        let total = memory::total_mib();
        assert_eq!(
            Some(default),
            total.map(|total| total / 2).or(Some(MEMORY_UNKNOWN_MIB))
        );
        assert!(default > 0);
        let told = JobSettings {
            memory_mib: 77,
            ..JobSettings::default()
        };
        assert_eq!(told.most_memory_mib(), 77);
    }

    #[test]
    fn workers_take_devices_in_turn() {
        let devices = Devices::try_from("cuda:0, cuda:1".to_owned()).unwrap();
        let numbers = [0, 1, 2].map(|number| devices.of_worker(number));
        assert_eq!(numbers, [0, 1, 0].map(DeviceChoice::Cuda));
        assert_eq!(String::from(devices), "cuda:0,cuda:1");
        for wrong in ["", "cuda:0,", "gpu"] {
            assert!(Devices::try_from(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn no_file_is_accepted_that_no_training_could_read() {
        let longer = JobSettings {
            max_file_bytes: text_files::LARGEST_FILE + 1,
            ..JobSettings::default()
        };
        let refused = longer.check().expect_err("too long");
        assert!(refused.contains("jobs.max_file_bytes"), "{refused}");
        let none = JobSettings {
            max_jobs: 0,
            ..JobSettings::default()
        };
        assert!(none.check().expect_err("no job").contains("jobs.max_jobs"));
    }
}
