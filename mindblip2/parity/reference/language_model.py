"""The reference of a language model: transformers' Llama or OPT as it is (Baichuan:
mindblip2/parity/reference/baichuan.py), under the few verbs that are compared.

transformers computes norms, angles and softmax in float32 even in a float64 model, which would be no truth.
While a float64 twin runs, each cast to float32 is therefore a cast to float64.

    # B batch · T positions · D width · V vocabulary
"""

from contextlib import nullcontext

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode

from mindblip2.config import LlamaConfig, OPTConfig
from mindblip2.config.schema import ConfigError
from mindblip2.convert.name_maps.blip2 import source_name
from mindblip2.convert.name_maps.language_models import BAICHUAN, LLAMA, OPT
from mindblip2.parity import seeded_weights
from mindblip2.parity.candidate.language_model import is_baichuan
from mindblip2.parity.reference.baichuan import baichuan

PARTS = ("norm1", "attention", "norm2", "ffn")  # of a layer


class Wide(TorchFunctionMode):
    """Casts to float32 become casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(widened, args), **{name: widened(value) for name, value in (kwargs or {}).items()})


def widened(value):
    """float64 for float32 where a dtype is meant."""
    return torch.float64 if value is torch.float32 else value


class LanguageTwin(nn.Module):
    """A causal language model of transformers. ``packed``: Baichuan, with its W_pack."""

    def __init__(self, config: LlamaConfig | OPTConfig, packed: bool = False):
        super().__init__()
        self.opt = isinstance(config, OPTConfig)
        self.source = OPT if self.opt else BAICHUAN if packed else LLAMA
        self.alibi = not self.opt and config.position_embedding == "alibi"
        if self.opt:
            self.llm = transformers.OPTForCausalLM(opt_config(config))
            for module in self.llm.modules():  # transformers' configuration has no such number
                if isinstance(module, nn.LayerNorm):
                    module.eps = config.layer_norm_eps
        elif packed:
            self.llm = baichuan(llama_config(config), self.alibi, config.normalized_head)
        elif is_baichuan(config):
            raise ConfigError(
                "ALiBi and a normalised head are Baichuan's, whose weights have a W_pack, and these have "
                "none: give the "
                "folder of Baichuan's own files as --llm_path, or another --config"
            )
        else:
            self.llm = transformers.LlamaForCausalLM(llama_config(config))
        self.stack = self.llm.model.decoder if self.opt else self.llm.model

    @property
    def dtype(self) -> torch.dtype:
        """Of all parameters."""
        return next(self.parameters()).dtype

    def exact(self):
        """The context in which everything of this twin runs."""
        return Wide() if self.dtype == torch.float64 else nullcontext()

    def parameter_of(self, ours: str) -> nn.Parameter:
        """The parameter that is called ``ours`` in mindblip2."""
        return self.llm.get_parameter(source_name(self.source, ours))

    def part(self, path: str) -> nn.Module:
        """The module that is called ``path`` in mindblip2; OPT's feed-forward is no module."""
        name = source_name(
            self.source, f"llm.{path}.query.weight" if path.endswith("attention") else f"llm.{path}.gamma"
        )
        return self.llm.get_submodule(name.rpartition(".")[0].removesuffix(".q_proj").removesuffix(".W_pack"))

    def embed(self, ids_BT):
        """(B, T, D)."""
        return self.stack.embed_tokens(ids_BT)

    def hidden(self, x_BTD, mask_BT):
        """What goes into the first layer, what comes out of each, and the last through the final norm."""
        seen = []
        handles = [
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
            for layer in self.stack.layers
        ]
        with self.exact():
            last = self.stack(
                inputs_embeds=x_BTD, attention_mask=mask_BT, position_ids=positions(mask_BT), use_cache=False
            )
        for handle in handles:
            handle.remove()
        return *seen, last.last_hidden_state

    def logits(self, x_BTD, mask_BT):
        """(B, T, V)."""
        with self.exact():
            return self.llm(
                inputs_embeds=x_BTD, attention_mask=mask_BT, position_ids=positions(mask_BT), use_cache=False
            ).logits

    def layer(self, i: int, x_BTD, mask_BT):
        """One layer."""
        with self.exact():
            return self.stack.layers[i](x_BTD, **self.told(x_BTD, mask_BT))

    def attention(self, i: int, x_BTD, mask_BT):
        """Its attention."""
        with self.exact():
            return self.stack.layers[i].self_attn(hidden_states=x_BTD, **self.told(x_BTD, mask_BT))[0]

    def ffn(self, i: int, x_BTD):
        """Its feed-forward."""
        layer = self.stack.layers[i]
        return layer.fc2(layer.activation_fn(layer.fc1(x_BTD))) if self.opt else layer.mlp(x_BTD)

    def norm(self, path: str, x_BTD):
        """A norm, by our path."""
        with self.exact():
            return self.part(path)(x_BTD)

    def told(self, x_BTD, mask_BT) -> dict:
        """What a layer is told besides its input."""
        seen = torch.ones(mask_BT.shape[1], mask_BT.shape[1]).tril() * mask_BT[:, None, None]
        bias = torch.zeros_like(seen, dtype=x_BTD.dtype).masked_fill(seen == 0, torch.finfo(x_BTD.dtype).min)
        turn = {} if self.opt else {"position_embeddings": self.stack.rotary_emb(x_BTD, positions(mask_BT))}
        return {"attention_mask": bias, **turn}

    def decoded(self, x_BTD, mask_BT, ids_BN, orders=None):
        """Logits (B, 1 + N, V) after a prompt and after each of N tokens, by transformers' cache; ``orders``
        (N, B): the rows are put into this order before each token."""
        with self.exact():
            out = self.llm(
                inputs_embeds=x_BTD, attention_mask=mask_BT, position_ids=positions(mask_BT), use_cache=True
            )
            found = [out.logits[:, -1]]
            for n in range(ids_BN.shape[1]):
                if orders is not None:
                    out.past_key_values.reorder_cache(orders[n])
                    mask_BT = mask_BT[orders[n]]
                mask_BT = nn.functional.pad(mask_BT, (0, 1), value=1)
                out = self.llm(
                    input_ids=ids_BN[:, n : n + 1],
                    attention_mask=mask_BT,
                    position_ids=positions(mask_BT)[:, -1:],
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )
                found.append(out.logits[:, -1])
            return torch.stack(found, 1)


def positions(mask_BT):
    """How many tokens stand before each."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def llama_config(config: LlamaConfig) -> transformers.LlamaConfig:
    """transformers' of ours."""
    scaling = dict(config.rope_scaling or {})
    kind = scaling.pop("type", "default")  # the older name of rope_type
    return transformers.LlamaConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=config.feed_forward_size,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=4096,
        pad_token_id=None,
        attn_implementation="eager",
        rope_parameters={"rope_type": kind, "rope_theta": config.rope_theta} | scaling,
    )


def opt_config(config: OPTConfig) -> transformers.OPTConfig:
    """transformers' of ours."""
    return transformers.OPTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        ffn_dim=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        word_embed_proj_dim=config.hidden_size,
        dropout=0.0,
        pad_token_id=None,
        attn_implementation="eager",
    )


@torch.no_grad()
def language_twin(
    config: LlamaConfig | OPTConfig, dtype: torch.dtype, packed: bool = False, seed: int = seeded_weights.SEED
) -> LanguageTwin:
    """A twin of seeded random weights, the same in each dtype."""
    twin = LanguageTwin(config, packed).eval()
    for name, parameter in twin.llm.named_parameters():
        parameter.copy_(torch.from_numpy(seeded_weights.weight(name, tuple(parameter.shape), seed)))
    return twin.to(dtype)
