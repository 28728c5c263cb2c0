"""The main job, top to bottom: what is missing of a run is done, followed, recorded and handed over."""
