// A stand-in for a GPU: what is computed "on" it is computed on the CPU, but its tensors and those of the CPU do not mix.
//
// Memory of the device is memory of the CPU. Every operation arrives at `fallback`, which refuses what CUDA refuses, lets the
// CPU compute on tensors over the same memory, and gives back tensors of the device over the memory of the results.

#include <set>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

namespace {

const c10::Device STAND_IN(c10::DeviceType::PrivateUse1, 0);
const c10::Device CPU(c10::DeviceType::CPU);

// --- what torch wants to know of a device ---

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override { return STAND_IN; }
  c10::Device getDevice() const override { return STAND_IN; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, STAND_IN); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, STAND_IN); }
  void synchronizeDevice(c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return STAND_IN; }
};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto data = c10::GetCPUAllocator()->allocate(bytes);
    auto deleter = data.get_deleter();
    void* context = data.release_context();
    return {context, context, deleter, STAND_IN};
  }
  c10::DeleterFnPtr raw_deleter() const override { return c10::GetCPUAllocator()->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

// --- the same memory on the other device ---

void forget(void* storage) { delete static_cast<c10::Storage*>(storage); }

c10::Storage moved(const c10::Storage& storage, c10::Device device) {
  c10::DataPtr data(const_cast<void*>(storage.data()), new c10::Storage(storage), &forget, device);
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true);
}

at::Tensor over(c10::Storage storage, const at::Tensor& like, c10::Device device) {
  c10::DispatchKeySet key(device.is_cpu() ? c10::DispatchKey::CPU : c10::DispatchKey::PrivateUse1);
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), key, like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

bool elsewhere(const at::Tensor& t) { return t.defined() && t.device().is_privateuseone(); }

at::Tensor on_cpu(const at::Tensor& t) { return elsewhere(t) ? over(moved(t.storage(), CPU), t, CPU) : t; }

// --- operations ---

const std::set<std::string> TAKES_CPU_INDICES = {
    "aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};

template <typename Function>  // function(tensor), for all tensors of an argument; the argument with what it returned
c10::IValue each(const c10::IValue& value, Function function) {
  if (value.isTensor()) return function(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> found;
    for (const at::Tensor& t : value.toTensorVector()) found.push_back(function(t));
    return found;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> found;
    for (const auto& t : value.toOptionalTensorVector())
      found.push_back(t ? std::optional<at::Tensor>(function(*t)) : std::nullopt);
    return found;
  }
  return value;
}

// As CUDA: a number of the CPU may stand beside tensors of the device, and its indices beside what they index.
void refuse_mixed(const c10::FunctionSchema& schema, size_t argument, const at::Tensor& t) {
  if (!t.defined() || elsewhere(t)) return;
  const auto* alias = schema.arguments()[argument].alias_info();
  bool written = alias && alias->isWrite();
  bool index = argument == 1 && TAKES_CPU_INDICES.count(schema.operator_name().name);
  TORCH_CHECK((t.dim() == 0 && !written) || index, "Expected all tensors to be on the same device, but found one of cpu, argument ",
              argument, " of ", schema.operator_name(), ", and others of ", STAND_IN, "!");
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto begin = stack->size() - schema.arguments().size();
  const std::vector<c10::IValue> given(stack->begin() + begin, stack->end());
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;  // tensors of the device, and those of the CPU over the same memory
  bool here = false;
  for (size_t i = 0; i < given.size(); i++) {
    (*stack)[begin + i] = each(given[i], [&](const at::Tensor& t) {
      if (!elsewhere(t)) return t;
      here = true;
      for (auto& [one, other] : pairs)
        if (one.is_same(t)) return other;
      pairs.emplace_back(t, on_cpu(t));
      return pairs.back().second;
    });
    if (given[i].isDevice() && given[i].toDevice().is_privateuseone()) {
      here = true;
      (*stack)[begin + i] = CPU;
    }
  }
  for (size_t i = 0; here && i < given.size(); i++) {
    each(given[i], [&](const at::Tensor& t) {
      refuse_mixed(schema, i, t);
      return t;
    });
    TORCH_CHECK(!given[i].isGenerator(), "Expected a generator of ", STAND_IN, " but found one of the CPU: ", op.operator_name());
  }
  op.callBoxed(stack);
  for (auto& [one, other] : pairs) {  // outputs may have been resized
    if (other.storage().data() != one.storage().data() || other.storage().nbytes() != one.storage().nbytes()) {
      auto* storage = one.storage().unsafeGetStorageImpl();
      auto bytes = other.storage().nbytes();
      storage->set_data_ptr_noswap({const_cast<void*>(other.storage().data()), new c10::Storage(other.storage()), &forget, STAND_IN});
      storage->set_nbytes(bytes);
    }
    if (other.sizes() != one.sizes() || other.strides() != one.strides() || other.storage_offset() != one.storage_offset())
      one.unsafeGetTensorImpl()->set_sizes_and_strides(other.sizes(), other.strides(), other.storage_offset());
  }
  for (auto i = stack->size() - schema.returns().size(); here && i < stack->size(); i++) {
    (*stack)[i] = each((*stack)[i], [&](const at::Tensor& t) {
      if (!t.defined()) return t;
      for (auto& [one, other] : pairs)
        if (other.is_same(t)) return one;
      for (auto& [one, other] : pairs)
        if (other.storage().unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl())  // a view
          return over(one.storage(), t, STAND_IN);
      return over(moved(t.storage(), STAND_IN), t, STAND_IN);
    });
  }
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

// Zeros without memory would need a dispatch key of their own.
at::Tensor zeros(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                 std::optional<at::Device> device, std::optional<bool> pinned) {
  return empty(size, dtype, layout, device, pinned, std::nullopt).zero_();
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor& set_storage(at::Tensor& self, c10::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                        c10::SymIntArrayRef stride) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto strides = stride.empty() ? at::detail::defaultStrides(sizes) : C10_AS_INTARRAYREF_SLOW(stride).vec();
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset.expect_int());
  return self;
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(source.storage());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(source.sizes(), source.strides(), source.storage_offset());
  return self;
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_efficientzerotensor", &zeros);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  for (const char* name : {"convolution", "convolution_backward"})  // torch has other defaults for these
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start", [] {
    static Hooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
  });
}
