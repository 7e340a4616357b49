//! Operations as nodes of candle's graph.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};

/// An operation on one to three inputs, of one device.
pub(super) trait Node {
    fn name(&self) -> &'static str;

    /// The result on the CPU.
    fn on_cpu(&self, _inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        bail!("{}: this node is of a GPU", self.name())
    }

    /// The result on a GPU.
    fn on_gpu(&self) -> Result<(CudaStorage, Shape)> {
        bail!("{}: this node is of the CPU", self.name())
    }

    /// The gradients of the inputs; None where none is wanted.
    fn backward<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]>;
}

/// Puts a node into the graph.
pub(super) fn apply(node: impl Node + Send + Sync + 'static, inputs: &[&Tensor]) -> Result<Tensor> {
    match inputs {
        [x] => x.apply_op1(InGraph(node)),
        [x, y] => x.apply_op2(y, InGraph(node)),
        [x, y, z] => x.apply_op3(y, z, InGraph(node)),
        _ => bail!("{}: {} inputs", node.name(), inputs.len()),
    }
}

struct InGraph<T>(T);

impl<T: Node> CustomOp1 for InGraph<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu(&[(storage, layout)])
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.on_gpu()
    }

    fn bwd(&self, x: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.0.backward([x], output, gradient)?;
        Ok(x)
    }
}

impl<T: Node> CustomOp2 for InGraph<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu(&[(s1, l1), (s2, l2)])
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.on_gpu()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.0.backward([x, y], output, gradient)?.into())
    }
}

impl<T: Node> CustomOp3 for InGraph<T> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.on_gpu()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.0.backward([x, y, z], output, gradient)?.into())
    }
}
