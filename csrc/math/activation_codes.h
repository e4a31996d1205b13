// The codes by which every backend knows an activation; fastmaml.ops.task_act and Triton's kernels have
// copies, which a test compares with these. Needs nothing of torch or CUDA.
#pragma once

namespace fastmaml::math {

enum class Act : int { none = 0, relu = 1, tanh = 2, gelu = 3, gelu_tanh = 4, sigmoid = 5, silu = 6 };

constexpr int kActs = 7;

// Whether the derivative is taken at the activation's input; else at its output, which then is saved.
constexpr bool saves_input(Act act) { return act == Act::gelu || act == Act::gelu_tanh || act == Act::silu; }

}  // namespace fastmaml::math
