BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE deliveries (
	id INTEGER NOT NULL, 
	job_id TEXT NOT NULL, 
	url TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	due_at DOUBLE NOT NULL, 
	attempts INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "deliveries" VALUES(1,'01a20f027f8324323ca6b4e4527a4cf1','https://example.org/hook','succeeded',1790001064.0,0);
CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job_id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	at DOUBLE NOT NULL, 
	data TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,'01a20f027f3d6f336cc5a1a4449f8a40','accepted',1790000001.0,'{"model":"tiny","priority":9}');
INSERT INTO "events" VALUES(2,'01a20f027f3d6f336cc5a1a4449f8a40','claimed',1790000001.0,'{"worker_id":"host/cpu","attempt":1,"queued_seconds":0.0,"model":"tiny"}');
INSERT INTO "events" VALUES(3,'01a20f027f3d6f336cc5a1a4449f8a40','denoised',1790000001.0,'{"steps":4}');
INSERT INTO "events" VALUES(4,'01a20f027f3d6f336cc5a1a4449f8a40','finished',1790000001.0,'{"outcome":"succeeded","model":"tiny","duration_seconds":0.0,"durations":{},"decode":{"strategy":"batched"},"error":null}');
INSERT INTO "events" VALUES(5,'01a20f027f3d6f336cc5a1a4449f8a40','expired',1790001002.0,'{}');
INSERT INTO "events" VALUES(6,'01a20f027f8324323ca6b4e4527a4cf1','accepted',1790001064.0,'{"model":"tiny","priority":9}');
INSERT INTO "events" VALUES(7,'01a20f027f8324323ca6b4e4527a4cf1','claimed',1790001064.0,'{"worker_id":"host/cpu","attempt":1,"queued_seconds":0.0,"model":"tiny"}');
INSERT INTO "events" VALUES(8,'01a20f027f8324323ca6b4e4527a4cf1','denoised',1790001064.0,'{"steps":4}');
INSERT INTO "events" VALUES(9,'01a20f027f8324323ca6b4e4527a4cf1','finished',1790001064.0,'{"outcome":"succeeded","model":"tiny","duration_seconds":0.0,"durations":{"decoding":1.0},"decode":{"strategy":"per_frame"},"error":null}');
INSERT INTO "events" VALUES(10,'01a20f027f8f28077910161ddf509f57','accepted',1790001065.0,'{"model":"tiny","priority":9}');
INSERT INTO "events" VALUES(11,'01a20f027f8f28077910161ddf509f57','claimed',1790001065.0,'{"worker_id":"host/cpu","attempt":1,"queued_seconds":0.0,"model":"tiny"}');
INSERT INTO "events" VALUES(12,'01a20f027f8f28077910161ddf509f57','finished',1790001065.0,'{"outcome":"failed","model":"tiny","duration_seconds":0.0,"durations":{},"decode":null,"error":{"code":"out_of_memory","message":"no room","data":{"needed_bytes":5}}}');
INSERT INTO "events" VALUES(13,'01a20f027f96f46dd3bec2a761486699','accepted',1790001066.0,'{"model":"tiny","priority":0}');
INSERT INTO "events" VALUES(14,'01a20f027f96f46dd3bec2a761486699','canceled',1790001066.0,'{"stage":"queued"}');
INSERT INTO "events" VALUES(15,'01a20f027f96f46dd3bec2a761486699','finished',1790001066.0,'{"outcome":"canceled","model":"tiny","queued_only":true}');
INSERT INTO "events" VALUES(16,'01a20f027f9e87fb40301dcf0cf7c7d1','accepted',1790001067.0,'{"model":"tiny","priority":9}');
INSERT INTO "events" VALUES(17,'01a20f027f9e87fb40301dcf0cf7c7d1','claimed',1790001067.0,'{"worker_id":"host/cpu","attempt":1,"queued_seconds":0.0,"model":"tiny"}');
INSERT INTO "events" VALUES(18,'01a20f027f9e87fb40301dcf0cf7c7d1','denoised',1790001067.0,'{"steps":4}');
INSERT INTO "events" VALUES(19,'01a20f027fa489931368f59ba57709ee','accepted',1790001068.0,'{"model":"tiny","priority":0}');
INSERT INTO "events" VALUES(20,'01a20f027fa7c65c0861b225544e2146','accepted',1790001069.0,'{"model":"tiny","priority":3}');
CREATE TABLE images (
	job_id TEXT NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (job_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "images" VALUES('01a20f027f8324323ca6b4e4527a4cf1',X'FFD820612070696374757265');
INSERT INTO "images" VALUES('01a20f027f8f28077910161ddf509f57',X'FFD820612070696374757265');
INSERT INTO "images" VALUES('01a20f027f96f46dd3bec2a761486699',X'FFD820612070696374757265');
INSERT INTO "images" VALUES('01a20f027f9e87fb40301dcf0cf7c7d1',X'FFD820612070696374757265');
INSERT INTO "images" VALUES('01a20f027fa489931368f59ba57709ee',X'FFD820612070696374757265');
INSERT INTO "images" VALUES('01a20f027fa7c65c0861b225544e2146',X'FFD820612070696374757265');
CREATE TABLE jobs (
	id TEXT NOT NULL, 
	status TEXT NOT NULL, 
	stage TEXT NOT NULL, 
	progress DOUBLE NOT NULL, 
	spec TEXT NOT NULL, 
	model TEXT NOT NULL, 
	priority INTEGER NOT NULL, 
	rank DOUBLE NOT NULL, 
	skips INTEGER NOT NULL, 
	needed_bytes BIGINT, 
	"plan" TEXT, 
	owner TEXT, 
	idempotency_key TEXT, 
	fingerprint TEXT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	queued_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	finished_at DOUBLE, 
	expires_at DOUBLE, 
	expired BOOLEAN NOT NULL, 
	attempts INTEGER NOT NULL, 
	token BIGINT NOT NULL, 
	worker_id TEXT, 
	lease_until DOUBLE, 
	cancel_requested BOOLEAN NOT NULL, 
	latents_path TEXT, 
	decode TEXT, 
	result TEXT, 
	error TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (idempotency_key)
);
INSERT INTO "jobs" VALUES('01a20f027f3d6f336cc5a1a4449f8a40','succeeded','finished',1.0,'{"prompt":"swept","negative_prompt":"","model":"tiny","width":256,"height":256,"num_frames":25,"fps":12,"num_inference_steps":4,"guidance_scale":1.0,"seed":7,"priority":9,"decode_strategy":"auto","frames_per_chunk":null,"exact_only":true,"memory_budget_bytes":null,"webhook_url":null}','tiny',9,1789994601.0,0,5,'{"strategy":"batched"}',NULL,NULL,'4f306c4f875ea031c70f6dc692a2c9e378fb036f33de36d67f46c5882a49d935',1790000001.0,1790000001.0,1790000001.0,1790000001.0,NULL,1,1,1,'host/cpu',NULL,0,NULL,'{"strategy":"batched"}','{"frames":25}',NULL);
INSERT INTO "jobs" VALUES('01a20f027f8324323ca6b4e4527a4cf1','succeeded','finished',1.0,'{"prompt":"succeeded","negative_prompt":"","model":"tiny","width":256,"height":256,"num_frames":25,"fps":12,"num_inference_steps":4,"guidance_scale":1.0,"seed":7,"priority":9,"decode_strategy":"auto","frames_per_chunk":null,"exact_only":true,"memory_budget_bytes":null,"webhook_url":"https://example.org/hook"}','tiny',9,1789995664.0,0,5,'{"strategy":"batched"}',NULL,NULL,'f44ae5ad4c18b8ebe57ca84814645f95e63293512121893e8a97dc85cf2cee74',1790001064.0,1790001064.0,1790001064.0,1790001064.0,1790002064.0,0,1,1,'host/cpu',NULL,0,'jobs/01a20f027f8324323ca6b4e4527a4cf1/latents.safetensors','{"strategy":"per_frame"}','{"frames":25,"video_path":"jobs/01a20f027f8324323ca6b4e4527a4cf1/video.mp4"}',NULL);
INSERT INTO "jobs" VALUES('01a20f027f8f28077910161ddf509f57','failed','finished',0.0,'{"prompt":"failed","negative_prompt":"","model":"tiny","width":256,"height":256,"num_frames":25,"fps":12,"num_inference_steps":4,"guidance_scale":1.0,"seed":7,"priority":9,"decode_strategy":"auto","frames_per_chunk":null,"exact_only":true,"memory_budget_bytes":null,"webhook_url":null}','tiny',9,1789995665.0,0,5,'{"strategy":"batched"}',NULL,NULL,'1051f6662b3798cccdcbc5d91070b6d84deb045bed44e68f5e1a290a21f89e41',1790001065.0,1790001065.0,1790001065.0,1790001065.0,1790002065.0,0,1,1,'host/cpu',NULL,0,NULL,NULL,NULL,'{"code":"out_of_memory","message":"no room","data":{"needed_bytes":5}}');
INSERT INTO "jobs" VALUES('01a20f027f96f46dd3bec2a761486699','canceled','finished',0.0,'{"prompt":"canceled","negative_prompt":"","model":"tiny","width":256,"height":256,"num_frames":25,"fps":12,"num_inference_steps":4,"guidance_scale":1.0,"seed":7,"priority":0,"decode_strategy":"auto","frames_per_chunk":null,"exact_only":true,"memory_budget_bytes":null,"webhook_url":null}','tiny',0,1790001066.0,0,5,'{"strategy":"batched"}',NULL,NULL,'39de0cd09b7c43d1941e7d7bc7e487f4c1504179e4446ce0aec8739ff2a91ad8',1790001066.0,1790001066.0,NULL,1790001066.0,1790002066.0,0,0,0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('01a20f027f9e87fb40301dcf0cf7c7d1','running','loading',0.0,'{"prompt":"running","negative_prompt":"","model":"tiny","width":256,"height":256,"num_frames":25,"fps":12,"num_inference_steps":4,"guidance_scale":1.0,"seed":7,"priority":9,"decode_strategy":"auto","frames_per_chunk":null,"exact_only":true,"memory_budget_bytes":null,"webhook_url":null}','tiny',9,1789995667.0,0,5,'{"strategy":"batched"}',NULL,NULL,'8f52990f62a20209b3749964b4703659756d18a60d77ecdfa37305b557fe85ea',1790001067.0,1790001067.0,1790001067.0,NULL,NULL,0,1,1,'host/cpu',1790001097.0,0,'jobs/01a20f027f9e87fb40301dcf0cf7c7d1/latents.safetensors',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('01a20f027fa489931368f59ba57709ee','queued','queued',0.0,'{"prompt":"queued","negative_prompt":"","model":"tiny","width":256,"height":256,"num_frames":25,"fps":12,"num_inference_steps":4,"guidance_scale":1.0,"seed":7,"priority":0,"decode_strategy":"auto","frames_per_chunk":null,"exact_only":true,"memory_budget_bytes":null,"webhook_url":null}','tiny',0,1790001068.0,0,5,'{"strategy":"batched"}',NULL,':a-key','b404609696c4963edab930cd727e1fe023a2335d648412076ec186d4a8dfb57f',1790001068.0,1790001068.0,NULL,NULL,NULL,0,0,0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('01a20f027fa7c65c0861b225544e2146','queued','queued',0.0,'{"prompt":"queued first","negative_prompt":"","model":"tiny","width":256,"height":256,"num_frames":25,"fps":12,"num_inference_steps":4,"guidance_scale":1.0,"seed":7,"priority":3,"decode_strategy":"auto","frames_per_chunk":null,"exact_only":true,"memory_budget_bytes":null,"webhook_url":null}','tiny',3,1789999269.0,0,5,'{"strategy":"batched"}',NULL,NULL,'255564d73317838583eee2122e8cde32ba97dc135e005cbcfcee021d774dcedf',1790001069.0,1790001069.0,NULL,NULL,NULL,0,0,0,NULL,NULL,0,NULL,NULL,NULL,NULL);
CREATE TABLE paused_devices (
	device_name TEXT NOT NULL, 
	PRIMARY KEY (device_name)
);
INSERT INTO "paused_devices" VALUES('cpu');
CREATE TABLE workers (
	id TEXT NOT NULL, 
	device TEXT NOT NULL, 
	device_name TEXT NOT NULL, 
	job_id TEXT, 
	started_at DOUBLE NOT NULL, 
	heartbeat_at DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "workers" VALUES('host/cpu','{"name":"cpu","kind":"cpu","total_bytes":100,"free_bytes":50}','cpu',NULL,1790000000.0,1790000000.0);
CREATE INDEX jobs_in_turn ON jobs (status, rank, id);
CREATE INDEX jobs_of_model_in_turn ON jobs (status, model, rank, id);
CREATE INDEX jobs_by_status ON jobs (status);
CREATE INDEX jobs_by_expiry ON jobs (expires_at);
CREATE INDEX events_of_job ON events (job_id, seq);
CREATE INDEX deliveries_in_turn ON deliveries (due_at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',20);
COMMIT;
