//! The `vhost` crate's request handler, on top of [`State`].
//!
//! The crate receives and decodes a message, calls here, and acknowledges if the frontend asked for it. A refusal is
//! left in `State::refusal`, because the crate's error can't tell "one message refused" from "socket dead".

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtq::RegionSpec;

use crate::backend::Backend;
use crate::ring::RingAddresses;
use crate::state::{Refusal, State};

/// Memory slots that ADD_MEM_REG may fill: what Linux's own vhost and QEMU settled on.
pub(crate) const MEM_SLOTS: u64 = virtq::MAX_REGIONS as u64;

impl<B> State<B> {
    /// Keeps the refusal for the session and gives the crate an error of its own kind.
    fn told<T>(&mut self, result: std::result::Result<T, Refusal>) -> Result<T> {
        result.map_err(|refusal| {
            self.refusal = Some(refusal);
            Error::InvalidParam
        })
    }
}

fn spec(region: &VhostUserMemoryRegion, file: File) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
        file,
    }
}

/// Requests of devices that Sluice does not have. Their protocol features are not offered.
fn unsupported<T>() -> Result<T> {
    Err(Error::ReqHandlerError(io::ErrorKind::Unsupported.into()))
}

impl<B: Backend> VhostUserBackendReqHandlerMut for State<B> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.disable_all();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        State::reset_device(self);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let result = State::set_features(self, features);
        self.told(result)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = regions.iter().zip(files).map(|(region, file)| spec(region, file)).collect();
        let result = State::set_mem_table(self, regions);
        self.told(result).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let result = State::set_vring_num(self, index, size);
        self.told(result)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        let used_log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let result = State::set_vring_addr(self, index, RingAddresses { desc, avail, used, used_log });
        self.told(result)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let result = State::set_vring_base(self, index, base);
        self.told(result)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let result = State::get_vring_base(self, index);
        let base = self.told(result)?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let result = State::set_vring_kick(self, index.into(), fd.map(Into::into));
        self.told(result)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let result = State::set_vring_call(self, index.into(), fd.map(Into::into));
        self.told(result)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let result = State::set_vring_err(self, index.into(), fd.map(Into::into));
        self.told(result)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.offered_protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let result = State::set_protocol_features(self, features);
        self.told(result)
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queue_count_reported().into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let result = State::set_vring_enable(self, index, enable.into());
        self.told(result)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.read_config(offset, size))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let result = self.write_config(offset, bytes);
        self.told(result)
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let result = self.create_inflight(wanted.num_queues, wanted.queue_size);
        let (file, bytes) = self.told(result)?;
        Ok((VhostUserInflight::new(bytes, 0, wanted.num_queues, wanted.queue_size), file))
    }

    fn set_inflight_fd(&mut self, area: &VhostUserInflight, file: File) -> Result<()> {
        let result =
            self.set_inflight(file, area.mmap_offset, area.mmap_size, area.num_queues, area.queue_size);
        self.told(result)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEM_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        let result = State::add_mem_region(self, spec(region, file));
        self.told(result).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let result =
            State::remove_mem_region(self, region.guest_phys_addr, region.user_addr, region.memory_size);
        self.told(result)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let result = self.set_log(file, log.mmap_offset, log.mmap_size);
        self.told(result)
    }
}
