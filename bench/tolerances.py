"""How far two tellings of the same faces may be apart. Free of imports: bench.gpu's machine has few packages."""

CLEAR_GENDER = 0.6  # of the more probable
CLEAR_EMOTION = 0.1  # lead of the main emotion over the second

# The same arithmetic in another order: the events' own rounding (0.1 px, 0.1 years) in 99 of 100 faces. Landmarks and
# embeddings were loosened to this after a first run, when a point was its heatmap's highest pixel and one face of 96
# was 0.7 px off; since it is a centre of mass, 0.1 px is what was found.
EXACT = {
    "missed": 0,
    "tracks_apart": 0,
    "usable_differ": 0,
    "box_px": 0.2,
    "landmark_px_p99": 0.3,
    "landmark_px": 2.0,
    "embedding_off_p99": 5e-4,
    "embedding_off": 0.01,
    "age_years": 0.2,
    "names_wrong": 0,
    "names_differ_clear": 0,
    "gender_differ_clear": 0,
    "emotion_differ_clear": 0,
}
# What a user can bear of coarser arithmetic, chosen before anything was run, but for usable_differ: less than the
# networks' own errors (landmarks 4 % of the distance between the eyes, age 5 years), names that are never another's,
# and as good as the same faces.
ALIKE = {
    "missed_sure": 0.02,
    "tracks_apart": 0.02,
    "usable_differ": 0.02,
    "box_share_p99": 0.05,
    "landmark_share_p99": 0.05,
    "embedding_off_p99": 0.01,
    "similarity_p99": 0.02,
    "age_years_p99": 2.0,
    "names_wrong": 0,
    "names_differ_clear": 0.005,
    "gender_differ_clear": 0.005,
    "emotion_differ_clear": 0.005,
}
TOLERANCES = {"f32": EXACT} | dict.fromkeys(("auto", "mixed", "f16", "bf16", "int8"), ALIKE)
