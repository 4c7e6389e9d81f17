// Every other operator: by way of the CPU, after the checks that CUDA's kernels make.
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/avg_pool3d.h>
#include <ATen/ops/convolution.h>
#include <torch/library.h>

#include <set>
#include <string>

#include "randoms.h"
#include "tensors.h"

namespace pretended {
namespace {

using at::Tensor;

void ready(const Tensor& tensor) {
  check_alive(tensor.device().index());
  run_all(key_of(current_stream(tensor.device().index())));
}

// The CPU's convolution in one step: as torch composes it for an unknown device, it ends in an error.
Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride,
                   c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
                   int64_t groups) {
  check_same_device(input, weight);
  bool has_bias = bias && bias->defined();
  if (has_bias) check_same_device(input, *bias);
  ready(input);
  const c10::DeviceGuard guard(input.device());
  auto host_bias = has_bias ? std::optional<Tensor>(as_host(*bias)) : std::nullopt;
  auto made = at::convolution(as_host(input), as_host(weight), host_bias, stride, padding, dilation, transposed,
                              output_padding, groups);
  return to_card(made, input);
}

// The CPU has no kernel in half precision. CUDA's sums in single precision, too.
Tensor avg_pool3d(const Tensor& input, c10::IntArrayRef kernel, c10::IntArrayRef stride, c10::IntArrayRef padding,
                  bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor) {
  ready(input);
  const c10::DeviceGuard guard(input.device());
  auto made = at::avg_pool3d(as_host(input).to(at::kFloat), kernel, stride, padding, ceil_mode, count_include_pad, divisor);
  return to_card(made.to(input.scalar_type()), input);
}

// Operators that index a tensor of the device by one in host memory.
bool takes_host_tensors(const c10::OperatorHandle& op) {
  static const std::set<std::string> names{"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
  return names.count(op.schema().name());
}

struct Arguments {
  const c10::OperatorHandle& op;
  torch::jit::Stack* stack;

  c10::IValue& at(size_t number) { return *(stack->end() - op.schema().arguments().size() + number); }
  size_t size() { return op.schema().arguments().size(); }

  // A tensor of the device; all others must be on it, too. The CPU fallback would mix them silently.
  Tensor checked() {
    Tensor first;
    auto check = [&](const Tensor& tensor) {
      if (!tensor.defined() || (tensor.is_cpu() && tensor.dim() == 0)) return;  // numbers may stay on the host
      if (!first.defined() || (takes_host_tensors(op) && !on_card(first))) first = tensor;
      else if (!takes_host_tensors(op)) check_same_device(first, tensor);
    };
    for (size_t each = 0; each < size(); ++each) {
      if (at(each).isTensor()) check(at(each).toTensor());
      else if (at(each).isTensorList())
        for (const Tensor& tensor : at(each).toTensorVector()) check(tensor);
    }
    return first;
  }

  // Put the host's generator in the place of the device's. Returns whether there is one now.
  bool with_host_generator(c10::DeviceIndex index) {
    bool given = false;
    for (size_t each = 0; each < size(); ++each) {
      auto type = op.schema().arguments()[each].type();
      if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
      if (type->kind() != c10::TypeKind::GeneratorType) continue;
      auto generator = at(each).isNone() ? default_randoms(index) : at(each).toGenerator();
      TORCH_CHECK(generator.device().type() == identity.type, "Expected a '", identity.type,
                  "' device type for generator but found '", generator.device().type(), "'");
      at(each) = static_cast<Randoms*>(generator.unsafeGetGeneratorImpl())->host;
      given = true;
    }
    return given;
  }
};

c10::DeviceIndex index_for(Arguments& arguments, const Tensor& first) {
  if (on_card(first)) return first.device().index();
  for (size_t each = 0; each < arguments.size(); ++each)
    if (arguments.at(each).isDevice() && arguments.at(each).toDevice().has_index())
      return arguments.at(each).toDevice().index();
  return current_device();
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Arguments arguments{op, stack};
  auto first = arguments.checked();
  auto index = index_for(arguments, first);
  check_alive(index);
  run_all(key_of(current_stream(index)));
  const c10::DeviceGuard guard(device_at(index));
  bool given = arguments.with_host_generator(index);
  if (given || !op.hasTag(at::Tag::nondeterministic_seeded)) return at::native::cpu_fallback(op, stack);
  // An operator without a generator of its own (dropout) draws from the CPU's default one: lend it the device's state.
  auto host = at::detail::getDefaultCPUGenerator();
  auto mine = static_cast<Randoms*>(default_randoms(index).unsafeGetGeneratorImpl())->host;
  auto before = host.get_state();
  host.set_state(mine.get_state());
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    host.set_state(before);
    throw;
  }
  mine.set_state(host.get_state());
  host.set_state(before);
}

}  // namespace

void register_operators() {
  auto* all = new torch::Library(torch::Library::IMPL, "_", identity.key, __FILE__, __LINE__);
  all->fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
  auto* aten = new torch::Library(torch::Library::IMPL, "aten", identity.key, __FILE__, __LINE__);
  aten->impl("convolution", &convolution);
  aten->impl("avg_pool3d", &avg_pool3d);
  // torch would compose these of others, which takes more memory than CUDA's own kernels do.
  for (auto name : {"native_group_norm", "native_layer_norm"})
    aten->impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  if (identity.type == c10::DeviceType::PrivateUse1) {
    auto* autocast = new torch::Library(torch::Library::IMPL, "_", c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
    autocast->fallback(torch::CppFunction::makeFallthrough());
  }
}

}  // namespace pretended
