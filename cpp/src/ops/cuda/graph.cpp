// CUDA graphs, by PyTorch's recorder: it makes the allocator take the memory of a recording from a
// pool of its own.
#include "replay/graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

#include <exception>

namespace tabes {
namespace {

class CudaGraph final : public Graph {
 public:
  void replay() override { graph.replay(); }
  at::cuda::CUDAGraph graph;
};

class CudaRecorder final : public GraphRecorder {
 public:
  explicit CudaRecorder(c10::Device device)
      : stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())),
        pool_(at::cuda::graph_pool_handle()) {}

  std::unique_ptr<Graph> record(const std::function<void(bool recording)>& work) override {
    const c10::cuda::CUDAGuard device(stream_.device());
    auto result = std::make_unique<CudaGraph>();
    // What the inputs are made of was sent on another stream.
    c10::cuda::device_synchronize();
    const c10::cuda::CUDAStreamGuard stream(stream_);
    // Libraries make their handles and workspaces of this stream, and kernels are loaded.
    work(false);
    stream_.synchronize();
    // What that took is this stream's, which does nothing else.
    c10::cuda::CUDACachingAllocator::emptyCache();
    // Other threads may go on allocating meanwhile.
    result->graph.capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    try {
      work(true);
    } catch (...) {
      const std::exception_ptr cause = std::current_exception();
      // Ends the stream's capture; that it was spoiled is known.
      try {
        result->graph.capture_end();
      } catch (const c10::Error&) {
      }
      std::rethrow_exception(cause);
    }
    result->graph.capture_end();
    return result;
  }

 private:
  c10::cuda::CUDAStream stream_;
  c10::MempoolId_t pool_;
};

const bool kRegistered = register_recorder(
    c10::DeviceType::CUDA, [](c10::Device device) -> std::unique_ptr<GraphRecorder> {
      return std::make_unique<CudaRecorder>(device);
    });

}  // namespace
}  // namespace tabes
