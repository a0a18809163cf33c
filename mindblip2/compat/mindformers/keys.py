"""What users bring along from MindFormers r1.0: names of its eight BLIP-2 YAML files and keys that they hold.

IGNORED keys steer machinery that does not exist here; they are accepted, and one line names them, by the
class of their section. WITHOUT_EFFECT are fields that nothing reads, in all sections of a class or at one
place: they keep their default, and another value is named in the same line.  Of IGNORED_VALUES the key means
something with another value.  FIXED keys name a choice that BLIP-2 has made; another value would be a
different model, so it is an error.
"""

PRESET_ALIASES = {
    # the card's own command; the file never existed upstream
    "run_blip2_pretrain_stage_1": "blip2_stage1_vit_g",
    "run_blip2_stage1_vit_g_qformer_pretrain": "blip2_stage1_vit_g",
    "run_blip2_stage1_vit_g_retrieval_flickr30k": "blip2_stage1_evaluator",
    "run_blip2_stage1_vit_g_zero_shot_image_classification_cifar100": "blip2_stage1_classification",
    "run_blip2_stage2_vit_g_llama_7b": "blip2_stage2_vit_g_llama_7b",
    "run_blip2_stage2_vit_g_llama_7b_910b": "blip2_stage2_vit_g_llama_7b",
    "run_blip2_stage2_vit_g_baichuan_7b": "blip2_stage2_vit_g_baichuan_7b",
    "run_blip2_stage2_vit_g_llama_7b_image_to_text_generation": "itt_blip2_stage2_vit_g_llama_7b",
    "run_blip2_stage2_vit_g_baichuan_7b_image_to_text_generation": "itt_blip2_stage2_vit_g_baichuan_7b",
    "blip2_stage1_pretrained": "blip2_stage1_vit_g",  # MindFormers' name of the weights
}
WEIGHT_ALIASES = {  # its files name weights by the preset; several presets have the same
    **{
        name: "blip2_stage1_vit_g"
        for name in ("blip2_stage1_pretrained", "blip2_stage1_classification", "blip2_stage1_evaluator")
    },
    **{f"itt_{name}": name for name in ("blip2_stage2_vit_g_llama_7b", "blip2_stage2_vit_g_baichuan_7b")},
}

TASK_ALIASES = {
    "ContrastiveLanguageImagePretrainTrainer": "contrastive_language_image_pretrain",
    "ZeroShotImageClassificationTrainer": "zero_shot_image_classification",
    "ImageToTextRetrievalTrainer": "image_to_text_retrieval",
    "ImageToTextGenerationTrainer": "image_to_text_generation",
    "zero_shot_image_to_text_generation": "image_to_text_generation",
    "blip2_retrieval": "image_to_text_retrieval",
    "blip2_retireval": "image_to_text_retrieval",
}  # the card's spelling

IGNORED = {
    "RunConfig": {
        "src_strategy_path_or_dir",
        "auto_trans_ckpt",
        "only_save_strategy",
        "remote_save_url",
        "runner_wrapper",
        "micro_batch_interleave_num",
        "auto_tune",
        "filepath_prefix",
        "autotune_per_step",
        "profile",
        "profile_start_step",
        "profile_stop_step",
        "init_start_profile",
        "profile_communication",
        "profile_memory",
        "train_dataset_task",
        "eval_dataset_task",
        "layer_scale",
        "lr_scale",
        "lr_scale_factor",
        "eval_callbacks",
    },
    "ContextConfig": {"graph_kernel_flags", "max_call_depth"},
    # a checkpoint knows where its run is
    "RunnerConfig": {"has_trained_epoches", "has_trained_steps", "initial_epoch", "sink_mode", "sink_size"},
    "ParallelConfig": {
        "expert_parallel",
        "pipeline_stage",
        "optimizer_shard",
        "micro_batch_num",
        "vocab_emb_dp",
        "gradient_aggregation_group",
    },
    "ParallelSection": {
        "parallel_mode",
        "gradients_mean",
        "search_mode",
        "enable_alltoall",
        "full_batch",
        "strategy_ckpt_save_file",
    },
    "RecomputeConfig": {
        "parallel_optimizer_comm_recompute",
        "mp_comm_recompute",
        "recompute_slice_activation",
    },
    # the run's seed decides
    "DatasetConfig": {
        "numa_enable",
        "return_attention_mask",
        "prefetch_size",
        "seed",
        # training always does: fewer negatives would weigh more; evaluation never does
        "drop_remainder",
    },
    # captions are cut and padded to max_length
    "TextTransformConfig": {"padding", "random_seed", "truncation", "add_special_tokens"},
    "TokenizerConfig": {"truncation"},  # an argument of the tokenizer's call
    "ImageProcessorConfig": {"is_hwc"},  # the order of an array's axes is seen from its shape
    "DataTokenizerConfig": {
        "max_length",
        "pad_token",
        "bos_token",
        "eos_token",
        "unk_token",
        "add_special_tokens",
        "add_bos_token",
        "add_eos_token",
        "padding",
        "truncation",
        "checkpoint_name_or_path",
    },
    "Blip2Config": {"type", "micro_batch_interleave_num"},
    "ViTConfig": {"type", "encoder_stride"},
    "QFormerConfig": {
        "type",
        "chunk_size_feed_forward",
        "output_attentions",
        "output_hidden_states",
        "use_return_dict",
        "convert_param_from_bert",
        "dtype",
        "compute_dtype",
    },
    "LlamaConfig": {
        "ignore_token_id",
        "compute_dtype",
        "layernorm_compute_type",
        "softmax_compute_type",
        "rotary_dtype",
        "param_init_type",
        "use_past",
        "offset",
    },
}

WITHOUT_EFFECT = {
    # users of the card read them; any batch is taken, set_train decides
    "Blip2Config": {"batch_size", "is_training"},
    "LoaderConfig": {"column_names"},  # samples are dicts here
    # MindFormers too takes runner_config.batch_size
    "train_dataset": {
        "batch_size",
        "k_test",
        "rerank",
        "add_extra_itm_score",
        "memory_budget",
        "temperature",
    },
    "train_dataset.data_loader": {"candidate_labels", "hypothesis_template"},
    # the processor's resize
    "eval_dataset": {"transforms", "repeat", "num_parallel_workers", "python_multiprocessing"},
    # what DigitScenes is examined with is fixed
    "eval_dataset.data_loader": {"scenes", "property_epochs"},
}

# all its BLIP-2 files say so, and none of them evaluates while it trains
IGNORED_VALUES = {"metric.type": ("Accuracy",)}

CALLBACKS = {  # its callbacks → their keys that mean something here → the key of runner_config
    # its spelling
    "CheckpointMointor": {
        "save_checkpoint_steps": "save_steps",
        "keep_checkpoint_max": "keep_checkpoint_max",
    },
    "CheckpointMonitor": {
        "save_checkpoint_steps": "save_steps",
        "keep_checkpoint_max": "keep_checkpoint_max",
    },
    "MFLossMonitor": {"per_print_times": "log_every"},
    "SummaryMonitor": {},
    "ObsMonitor": {},
}

FIXED = {
    "ViTConfig": {
        "hidden_act": "gelu",
        "post_layernorm_residual": False,
        "use_mean_pooling": False,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    },
    "QFormerConfig": {
        "hidden_act": "gelu",
        "add_cross_attention": True,
        "use_relative_positions": False,
        "tie_word_embeddings": True,
        "layernorm_dtype": "float32",
        "softmax_dtype": "float32",
    },
}


def translate(class_name, raw):
    """MindFormers counts the vocabulary of the Q-Former without [DEC], whose id is then the count; here it is
    included."""
    if class_name != "QFormerConfig":
        return raw
    raw = {
        key: value
        for key, value in raw.items()
        if key not in ("resize_token_embeddings", "special_token_nums")
    }
    if "vocab_size" in raw and raw["vocab_size"] == raw.get("bos_token_id"):
        raw["vocab_size"] += 1
    return raw
