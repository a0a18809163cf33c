"""Which kind of file this is, by the names in it."""
from convert.names import BERT, EVA, HF, LAVIS
from convert.names_llm import BRIDGES, LANGUAGE_MODELS, crossed
from mindblip2.checkpoint import CheckpointError

FLAN_T5 = ("t5_proj.", "t5_model.", "language_model.encoder.block.")


def detect(state, path):
    """The :class:`~convert.names.Source` of a file; of a bridge with the language model behind it in the same file, both in one."""
    if _has(state, *FLAN_T5):
        raise CheckpointError(f"{path} leads into FlanT5, which is not built here: take an OPT or a Vicuna file of stage 2")
    if any(".project_in." in name for name in state):
        raise CheckpointError(f"{path} is OPT-350m, the one OPT with projected words (project_in) and norms behind its layers: "
                              "it is not built here, and no bridge leads into it.  Take opt-2.7b or opt-6.7b")
    bridge, llm = (next((kind for kind in kinds if _has(state, kind.mark)), None) for kinds in (BRIDGES, LANGUAGE_MODELS))
    if bridge and llm:
        _check_family(bridge, llm.llm, path, path)
        return crossed(bridge, llm)
    for kind in (bridge, LAVIS, HF, EVA, BERT, llm):
        if kind and _has(state, kind.mark):
            return kind
    raise CheckpointError(f"{path} is none of the files that can be converted (LAVIS stage 1 or 2, eva_vit_g, bert-base-uncased, "
                          "transformers blip2-itm or blip2-opt, MindFormers stage 1, Llama, Baichuan, OPT): its names begin with "
                          f"{', '.join(sorted(state)[:3])}")


def is_bridge(kind):
    """Does the file hold a Q-Former and a projection into a language model?"""
    return "llm_proj" in kind.modules


def is_language_model(kind):
    """Is the file a language model alone?"""
    return "llm.word" in kind.modules and not is_bridge(kind)


def holds_vit(state):
    """Does the file hold the ViT?  LAVIS saves it where it was trained."""
    return _has(state, "visual_encoder.", "vision_model.encoder.")


def check_bridge(bridge, width, text_config, path, other):
    """A bridge leads into the language model that it was trained with: the kind and the width of ``other`` are checked."""
    _check_family(bridge, type(text_config), path, other)
    if width != text_config.hidden_size:
        raise CheckpointError(f"{path} leads into a language model {width} wide ({_named(width, bridge.llm)}), but {other} is "
                              f"{text_config.hidden_size} wide ({_named(text_config.hidden_size, type(text_config))}): a bridge "
                              "fits only the model that it was trained with")


def _check_family(bridge, llm, path, other):
    if bridge.llm not in (None, llm):
        raise CheckpointError(f"{path} is a bridge into {_family(bridge.llm)} ({bridge.modules['llm_proj']}), but {other} is "
                              f"{_family(llm)}: a bridge fits only the model that it was trained with")


def _family(llm):
    return llm.__name__.removesuffix("Config")


def _named(width, llm):
    widths = {2560: {"OPT": "OPT-2.7b"}, 4096: {"OPT": "OPT-6.7b", "Llama": "a 7B"}, 5120: {"OPT": "OPT-13b", "Llama": "a 13B"}}
    family = _family(llm) if llm else ""
    known = widths.get(width, {})
    return known.get(family) or " or ".join(known.values()) or "no published size"


def _has(state, *starts):
    return any(name.startswith(starts) for name in state)
